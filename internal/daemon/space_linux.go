package daemon

import "golang.org/x/sys/unix"

// freeSpace is what an unprivileged user could still write below dir, in bytes.
func freeSpace(dir string) (int64, bool) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Bsize <= 0 {
		return 0, false
	}
	return int64(st.Bavail) * int64(st.Bsize), true
}
