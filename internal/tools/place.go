package tools

import (
	"context"
	"errors"
	"fmt"

	"blockgate/iscsi"
	"blockgate/iscsi/initiator"
)

// discover asks the URL's portal for its targets. Discovery often has accounts of
// its own: where mutual CHAP is refused, one-way is tried. What is listed is not
// trusted; each login proves the target again.
func discover(ctx context.Context, u *initiator.URL) ([]iscsi.TargetRecord, error) {
	cfg := u.Config()
	cfg.TargetName = ""
	records, err := initiator.Discover(ctx, cfg)
	var refused *iscsi.LoginError
	if cfg.Mutual != nil && errors.As(err, &refused) && refused.Status == iscsi.LoginAuthFailed {
		cfg.Mutual = nil
		records, err = initiator.Discover(ctx, cfg)
	}
	return records, err
}

// place finds what the tools work on when the URL leaves it open: the only
// target of the portal, and the first disk of the target.
func place(ctx context.Context, u *initiator.URL) error {
	if u.Target != "" {
		return nil
	}
	records, err := discover(ctx, u)
	if err != nil {
		return err
	}
	if len(records) != 1 {
		return fmt.Errorf("%w: %s offers %d targets; name one: iscsi://%s/TARGET/LUN", ErrUsage, u.Addr, len(records), u.Addr)
	}
	u.Target = records[0].Name
	u.Addr = portalFor(u.Addr, records[0])
	return nil
}

// chooseLUN gives the URL's LUN, or the first disk.
func chooseLUN(ctx context.Context, s *initiator.Session, u *initiator.URL) error {
	if u.HasLUN {
		return nil
	}
	numbers, err := s.ReportLUNs(ctx)
	if err != nil {
		return err
	}
	for _, n := range numbers {
		if q, err := s.Unit(n).Inquiry(ctx); err == nil && q.Type == typeDisk && q.Qualifier == 0 {
			u.LUN, u.HasLUN = n, true
			return nil
		}
	}
	return fmt.Errorf("%s has no disk among its %d logical units", u.Target, len(numbers))
}
