// Package layer stacks layers on stores by name. A layer is a store over another
// one; the kinds are the packages below this one, and package base is what they
// are made of.
package layer

import (
	"fmt"
	"strings"

	"blockgate/backing"
	"blockgate/backing/layer/delay"
	"blockgate/backing/layer/fault"
	"blockgate/backing/layer/readonly"
)

// Kinds lists the kinds of layers that Wrap knows, sorted.
func Kinds() []string { return []string{"delay", "fault", "readonly"} }

// Wrap puts a layer over store, which belongs to the layer if there is no error:
// closing the layer closes it. An error names the kind and the parameter; store
// is then as it was.
func Wrap(store backing.Store, kind string, params map[string]string) (backing.Store, error) {
	switch kind {
	case "delay":
		c, err := delay.FromParams(params)
		if err != nil {
			return nil, err
		}
		return delay.New(store, c), nil
	case "fault":
		s, err := fault.FromParams(store, params)
		if err != nil {
			return nil, err
		}
		return s, nil
	case "readonly":
		for k := range params {
			return nil, fmt.Errorf("readonly: unknown parameter %q, it takes none", k)
		}
		return readonly.New(store), nil
	}
	return nil, fmt.Errorf("layer %q: unknown kind (there are: %s): %w", kind,
		strings.Join(Kinds(), ", "), backing.ErrNotSupported)
}
