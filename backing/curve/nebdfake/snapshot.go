package nebdfake

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// SnapshotService is Curve's snapshot and clone service for the volumes of a
// server, an http.Handler. As the real one it answers before anything is done:
// each time it is asked for the state of a snapshot or clone that goes one step
// on. A snapshot is pending, gets its number, and is taken only when it has made
// progress: until then writes change it.
type SnapshotService struct {
	s    *Server
	pool string

	mu    sync.Mutex
	next  int
	snaps []*snap
	tasks []*task
	fail  map[string]int
	lose  string
	stuck bool
	calls map[string]int
}

type snap struct {
	uuid, user, file, name string
	seq, status, progress  int
	made                   int64
	data                   *volume
}

type task struct {
	uuid, user, file string
	status           int
	kind             int
	snap             string
}

// NewSnapshotService makes a service for the volumes of one pool.
func NewSnapshotService(s *Server, pool string) *SnapshotService {
	return &SnapshotService{s: s, pool: pool, fail: make(map[string]int), calls: make(map[string]int)}
}

// Fail makes an action fail with a code of the service from now on; 0: no more.
// "Take" is the taking of a snapshot, "Copy" what comes then, and "Install" the making of a clone, which
// end in their state of error.
func (x *SnapshotService) Fail(action string, code int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.fail[action] = code
}

// Lose does the next of an action and ends the connection without an answer.
func (x *SnapshotService) Lose(action string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.lose = action
}

// Stick keeps everything in the state it has, or lets it go on.
func (x *SnapshotService) Stick(stuck bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.stuck = stuck
}

// Calls is how often an action was asked for.
func (x *SnapshotService) Calls(action string) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.calls[action]
}

type answer map[string]any

func (x *SnapshotService) volume(file, user string) string {
	return "cbd:" + x.pool + "/" + file + "_" + user + "_"
}

// ServeHTTP implements http.Handler.
func (x *SnapshotService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	x.mu.Lock()
	code, a := -5, answer{}
	if r.URL.Path == "/SnapshotCloneService" && q.Get("Version") == "0.0.6" && q.Get("User") != "" {
		action := q.Get("Action")
		x.calls[action]++
		if code = x.fail[action]; code == 0 {
			code = x.do(action, q, a)
		}
	}
	lost := q.Get("Action") == x.lose
	if lost {
		x.lose = ""
	}
	x.mu.Unlock()
	if lost {
		panic(http.ErrAbortHandler)
	}
	a["Code"], a["RequestId"], a["Message"] = strconv.Itoa(code), "r-1", map[bool]string{true: "Exec success.", false: "failed"}[code == 0]
	switch code {
	case 0:
	case -5:
		w.WriteHeader(http.StatusBadRequest)
	default:
		w.WriteHeader(http.StatusInternalServerError)
	}
	_ = json.NewEncoder(w).Encode(a)
}

func (x *SnapshotService) id() string {
	x.next++
	return fmt.Sprintf("00000000-0000-4000-8000-%012d", x.next)
}

func (x *SnapshotService) do(action string, q url.Values, a answer) int {
	user, file := q.Get("User"), q.Get("File")
	x.s.mu.Lock()
	v := x.s.volumes[x.volume(file, user)]
	x.s.mu.Unlock()
	switch action {
	case "CreateSnapshot":
		if v == nil {
			return -8
		}
		s := &snap{uuid: x.id(), user: user, file: file, name: q.Get("Name"), status: 1, made: time.Now().UnixMicro(), data: v}
		x.snaps = append(x.snaps, s)
		a["UUID"] = s.uuid
		return 0
	case "DeleteSnapshot", "CancelSnapshot":
		s := x.snap(q.Get("UUID"))
		switch {
		case s == nil || s.file != file:
			return -8
		case action == "CancelSnapshot" && s.status != 1:
			return -14
		case action == "DeleteSnapshot" && s.status == 1:
			return -12
		}
		for _, t := range x.tasks {
			if t.snap == s.uuid && t.status != 0 {
				return -16
			}
		}
		switch {
		case action == "CancelSnapshot":
			s.status = 4
		case s.status == 5:
			s.status = 3
		default:
			s.status = 2
		}
		return 0
	case "GetFileSnapshotInfo":
		if v == nil {
			return -8
		}
		return x.list(user, file, q, a)
	case "Clone":
		s := x.snap(q.Get("Source"))
		dst := q.Get("Destination")
		switch {
		case s == nil || s.status != 0:
			return -15
		case !strings.HasPrefix(dst, "/"):
			return -5
		}
		name := x.volume(dst, user)
		x.s.mu.Lock()
		exists := x.s.volumes[name] != nil
		if !exists {
			x.s.volumes[name] = s.data.clone()
		}
		x.s.mu.Unlock()
		if exists {
			return -19
		}
		t := &task{uuid: x.id(), user: user, file: dst, status: 1, snap: s.uuid}
		x.tasks = append(x.tasks, t)
		a["UUID"] = t.uuid
		return 0
	case "Flatten":
		for _, t := range x.tasks {
			if t.uuid == q.Get("UUID") {
				if t.status == 7 {
					t.status = 1
					t.kind = 1
				}
				return 0
			}
		}
		return -8
	case "CleanCloneTask":
		for i, t := range x.tasks {
			if t.uuid == q.Get("UUID") {
				x.tasks = append(x.tasks[:i], x.tasks[i+1:]...)
				return 0
			}
		}
		return -8
	case "GetCloneTasks":
		infos := []answer{}
		for _, t := range x.tasks {
			if t.user != user || q.Has("UUID") && t.uuid != q.Get("UUID") || q.Has("File") && t.file != file {
				continue
			}
			if t.status == 1 && !x.stuck {
				switch {
				case x.fail["Install"] != 0:
					t.status = 5
				case t.kind == 1:
					t.status = 0
				default:
					t.status = 7
				}
			}
			infos = append(infos, answer{"UUID": t.uuid, "File": t.file, "TaskStatus": t.status, "TaskType": 0, "User": t.user})
		}
		a["TotalCount"], a["TaskInfos"] = len(infos), infos
		return 0
	}
	return -5
}

func (x *SnapshotService) snap(uuid string) *snap {
	for _, s := range x.snaps {
		if s.uuid == uuid {
			return s
		}
	}
	return nil
}

// list tells of snapshots, after they went one step on.
func (x *SnapshotService) list(user, file string, q url.Values, a answer) int {
	var keep, match []*snap
	for _, s := range x.snaps {
		mine := s.user == user && s.file == file && (!q.Has("UUID") || s.uuid == q.Get("UUID"))
		if mine && !x.stuck && q.Has("UUID") {
			switch {
			case s.status == 2 || s.status == 3 || s.status == 4:
				continue // gone
			case s.status == 1 && x.fail["Take"] != 0:
				s.status = 5
			case s.status == 1 && s.seq == 0:
				s.seq = x.next
			case s.status == 1 && s.progress < 5:
				s.progress, s.data = 5, s.data.clone()
			case s.status == 1 && x.fail["Copy"] != 0:
				s.status = 5
			case s.status == 1 && s.progress < 50:
				s.progress = 50
			case s.status == 1:
				s.progress, s.status = 100, 0
			}
		}
		keep = append(keep, s)
		if mine {
			match = append(match, s)
		}
	}
	x.snaps = keep
	total := len(match)
	if n, err := strconv.Atoi(q.Get("Offset")); err == nil {
		match = match[min(n, len(match)):]
	}
	if n, err := strconv.Atoi(q.Get("Limit")); err == nil {
		match = match[:min(n, len(match))]
	}
	infos := []answer{}
	for _, s := range match {
		infos = append(infos, answer{"UUID": s.uuid, "User": s.user, "File": s.file, "SeqNum": s.seq, "Name": s.name,
			"Time": s.made, "FileLength": s.data.length(), "Status": s.status, "Progress": s.progress})
	}
	a["TotalCount"], a["Snapshots"] = total, infos
	return 0
}
