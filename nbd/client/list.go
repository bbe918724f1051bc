package client

import (
	"context"
	"errors"
	"fmt"
	"net"

	"blockgate/nbd"
)

// maxExports bounds what List takes from a server.
const maxExports = 10000

// List asks a server for its exports, with what it tells of each; where that is
// refused only Name and Description are set. Of cfg only Dial and Secure matter.
func List(ctx context.Context, cfg Config) ([]Export, error) {
	nc, err := cfg.Dial(ctx)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	stop := guard(ctx, nc)
	exports, err := list(ctx, &cfg, nc)
	if cause := stop(); cause != nil {
		err = cause
	}
	if err != nil {
		return nil, fmt.Errorf("nbd: %w", err)
	}
	return exports, nil
}

func list(ctx context.Context, cfg *Config, nc net.Conn) ([]Export, error) {
	h, err := shake(ctx, nc, cfg)
	if err != nil {
		return nil, err
	}
	defer h.abort()
	var exports []Export
	err = h.option(nbd.OptList, nil, func(t nbd.ReplyType, data []byte) error {
		if t != nbd.RepServer {
			return broken("%v in the answer to LIST", t)
		}
		if len(exports) == maxExports {
			return fmt.Errorf("more than %d exports", maxExports)
		}
		e, err := nbd.DecodeServerEntry(data)
		if err != nil {
			return err
		}
		exports = append(exports, Export{Name: e.Name, Description: e.Description, BlockSize: nbd.DefaultBlockSize()})
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := range exports {
		e := &exports[i]
		told := e.Description
		if err := h.info(nbd.OptInfo, e); err != nil {
			if optionRefused(err, 0) || errors.Is(err, ErrTLSRequired) {
				continue
			}
			return nil, err
		}
		if e.Description == "" {
			e.Description = told
		}
	}
	return exports, nil
}
