package initiator

import (
	"blockgate/iscsi"
)

// Login logs the connection in as the leading one of a session, without a time
// limit of its own. The Raw then knows Params, TSIH and the sequence numbers to
// go on with, and expects and sends the digests that were agreed.
func (r *Raw) Login(cfg Config) error { return r.login(cfg.filled(), 0, 0) }

func (r *Raw) login(cfg Config, cid, tsih uint16) error {
	offer := iscsi.DefaultOffer()
	offer.Params = *cfg.Params
	offer.HeaderDigests, offer.DataDigests = cfg.HeaderDigests, cfg.DataDigests
	l, err := iscsi.NewInitiatorLogin(iscsi.InitiatorConfig{
		InitiatorName: cfg.InitiatorName,
		TargetName:    cfg.TargetName,
		Discovery:     cfg.TargetName == "",
		ISID:          cfg.ISID,
		TSIH:          tsih,
		CID:           cid,
		CmdSN:         r.CmdSN,
		Account:       cfg.Auth,
		Mutual:        cfg.Mutual,
		Algorithms:    cfg.Algorithms,
		Offer:         offer,
		Extra:         cfg.Extra,
	})
	if err != nil {
		return err
	}
	for pdu := l.Start(); ; {
		if err := r.Send(&pdu.BHS, nil, pdu.Data); err != nil {
			return err
		}
		resp, err := r.Recv()
		if err != nil {
			return unexpected(err)
		}
		next, done, err := l.Step(&resp.BHS, resp.Data)
		if err != nil {
			return err
		}
		if done {
			break
		}
		pdu = next
	}
	res := l.Result()
	r.Params, r.TSIH, r.Answers = res.Params, res.TSIH, res.Answers
	r.ExpStatSN, r.ExpCmdSN, r.MaxCmdSN = res.ExpStatSN, res.ExpCmdSN, res.MaxCmdSN
	r.HeaderDigest, r.DataDigest = res.Params.HeaderDigest, res.Params.DataDigest
	r.ExpectDigests(r.HeaderDigest, r.DataDigest)
	r.MaxRecv(res.Params.MaxRecvDataSegment)
	return nil
}
