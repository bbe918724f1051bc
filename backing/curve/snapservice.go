package curve

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"blockgate/backing"
)

// apiVersion is what the snapshot and clone service is told of the protocol.
const apiVersion = "0.0.6"

// maxAnswer bounds an answer of the service; a page of a list is far shorter.
const maxAnswer = 4 << 20

// pageSize is how many snapshots or tasks are asked for at once.
const pageSize = 100

// The service's codes that say something in the words of package backing.
var serviceErrors = map[int]error{
	-8:  backing.ErrNotExist,     // the file is not there
	-12: backing.ErrBusy,         // a deletion is not finished
	-15: backing.ErrNotSupported, // the snapshot cannot be used
	-16: backing.ErrBusy,         // clones depend on the snapshot
	-19: backing.ErrExist,
	-20: backing.ErrBusy, // too many tasks
	-21: backing.ErrNotSupported,
}

// serviceError is an answer that says no.
type serviceError struct {
	code int
	text string
}

func (e *serviceError) Error() string {
	return fmt.Sprintf("snapshot and clone service: %s (%d)", e.text, e.code)
}

func (e *serviceError) Unwrap() error { return serviceErrors[e.code] }

// number is what the service sends as a number or as a string of one.
type number int64

// UnmarshalJSON implements json.Unmarshaler.
func (n *number) UnmarshalJSON(b []byte) error {
	if len(b) > 1 && b[0] == '"' {
		b = b[1 : len(b)-1]
	}
	v, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil {
		return fmt.Errorf("%q is no number", b)
	}
	*n = number(v)
	return nil
}

// serviceAnswer is what the answers to all actions say.
type serviceAnswer struct {
	Code       number
	Message    string
	UUID       string
	TotalCount number
	Snapshots  []snapshotInfo
	TaskInfos  []taskInfo
}

func parseAnswer(b []byte) (a serviceAnswer, err error) {
	if err := json.Unmarshal(b, &a); err != nil {
		return serviceAnswer{}, fmt.Errorf("snapshot and clone service: %w", err)
	}
	return a, nil
}

// snapshotInfo is a snapshot as the service has it.
type snapshotInfo struct {
	UUID       string
	File       string
	Name       string
	SeqNum     number // 0: not taken yet
	Time       number // µs
	FileLength number // bytes
	Status     number
	Progress   number // percent
}

// States of a snapshot. Others are of one that is being deleted.
const (
	snapDone    = 0
	snapPending = 1
	snapError   = 5
)

// progressTaken is the progress (percent) from which on writes do not change the
// snapshot.
const progressTaken = 5

// taskInfo is a clone in the making.
type taskInfo struct {
	UUID       string
	File       string
	TaskStatus number
}

// States of a clone.
const (
	taskDone          = 0
	taskErrorCleaning = 4
	taskError         = 5
	taskMetaInstalled = 7 // a lazy clone can be used
)

// snapshotService is Curve's snapshot and clone service for one volume.
type snapshotService struct {
	user  string
	file  string
	addrs []string
	http  *http.Client
	poll  time.Duration

	maxPause time.Duration
}

func newSnapshotService(l Location, cfg Config) *snapshotService {
	cfg = cfg.withDefaults()
	return &snapshotService{
		user: l.User, file: l.Volume, addrs: l.Snapshots, poll: cfg.Poll, maxPause: cfg.MaxPause,
		http: &http.Client{
			Timeout: min(cmp.Or(l.Timeout, DefaultTimeout), 30*time.Second),
			// A connection for each request: they are rare, and nothing stays behind.
			Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				return cfg.Dial(ctx, network, address)
			}},
		},
	}
}

// do asks for an action at the first address that answers. One that changes
// something is not asked for again if it may have been heard.
func (s *snapshotService) do(ctx context.Context, action string, params ...string) (serviceAnswer, error) {
	q := url.Values{"Action": {action}, "Version": {apiVersion}, "User": {s.user}}
	for i := 0; i+1 < len(params); i += 2 {
		q.Set(params[i], params[i+1])
	}
	var last error
	for _, addr := range s.addrs {
		a, err := s.ask(ctx, "http://"+addr+"/SnapshotCloneService?"+q.Encode())
		if err == nil || errors.As(err, new(*serviceError)) {
			return a, err
		}
		if ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
			// The time was over while this address failed: who asks wants to know that.
			err = fmt.Errorf("%w (%w)", ctx.Err(), err)
		}
		if ctx.Err() != nil {
			return a, err
		}
		last = err
		var op *net.OpError
		if !strings.HasPrefix(action, "Get") && !(errors.As(err, &op) && op.Op == "dial") {
			break
		}
	}
	return serviceAnswer{}, last
}

func (s *snapshotService) ask(ctx context.Context, u string) (serviceAnswer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return serviceAnswer{}, err
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return serviceAnswer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return serviceAnswer{}, err
	}
	if len(b) > maxAnswer {
		return serviceAnswer{}, fmt.Errorf("snapshot and clone service: an answer of more than %d bytes", maxAnswer)
	}
	a, err := parseAnswer(b)
	if err != nil {
		return serviceAnswer{}, fmt.Errorf("%w (status %s)", err, resp.Status)
	}
	if a.Code != 0 {
		return a, &serviceError{int(a.Code), a.Message}
	}
	if resp.StatusCode != http.StatusOK {
		return a, fmt.Errorf("snapshot and clone service: status %s", resp.Status)
	}
	return a, nil
}

// snapshots lists all snapshots of the volume.
func (s *snapshotService) snapshots(ctx context.Context) ([]snapshotInfo, error) {
	var list []snapshotInfo
	for {
		a, err := s.do(ctx, "GetFileSnapshotInfo", "File", s.file, "Limit", strconv.Itoa(pageSize), "Offset", strconv.Itoa(len(list)))
		if err != nil {
			return nil, err
		}
		list = append(list, a.Snapshots...)
		if len(a.Snapshots) == 0 || len(list) >= int(a.TotalCount) {
			return list, nil
		}
		if len(list) > 1<<16 {
			return nil, errors.New("snapshot and clone service: a list without end")
		}
	}
}

// byUUID is a snapshot, or false if it is not there any more.
func (s *snapshotService) byUUID(ctx context.Context, uuid string) (snapshotInfo, bool, error) {
	a, err := s.do(ctx, "GetFileSnapshotInfo", "File", s.file, "UUID", uuid)
	if errors.Is(err, backing.ErrNotExist) {
		return snapshotInfo{}, false, nil
	}
	if err != nil {
		return snapshotInfo{}, false, err
	}
	for _, i := range a.Snapshots {
		if i.UUID == uuid {
			return i, true, nil
		}
	}
	return snapshotInfo{}, false, nil
}

// task is a clone in the making, by its id or, if that is empty, its file.
func (s *snapshotService) task(ctx context.Context, key, value string) (taskInfo, error) {
	a, err := s.do(ctx, "GetCloneTasks", key, value)
	if err != nil {
		return taskInfo{}, err
	}
	for _, t := range a.TaskInfos {
		if key == "UUID" && t.UUID == value || key == "File" && t.File == value {
			return t, nil
		}
	}
	return taskInfo{}, fmt.Errorf("%w: clone task of %s %s", backing.ErrNotExist, key, value)
}

// until calls fn now and then until it is done.
func (s *snapshotService) until(ctx context.Context, fn func() (done bool, err error)) error {
	t := time.NewTicker(s.poll)
	defer t.Stop()
	for {
		if done, err := fn(); done || err != nil {
			return err
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
