package tools

import (
	"context"
	"fmt"

	"blockgate/iscsi/initiator"
)

// place finds what the tools work on when the URL leaves it open: the only
// target of the portal, and the first disk of the target.
func place(ctx context.Context, u *initiator.URL) error {
	if u.Target != "" {
		return nil
	}
	records, err := initiator.Discover(ctx, u.Config())
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
