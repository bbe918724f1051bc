package tgtconf

import "testing"

func TestGlusterOptions(t *testing.T) {
	const url = "gluster:v@h/f"
	for opts, want := range map[string]string{
		"":                                    url,
		";":                                   url,
		"logfile=/var/log/g.log;loglevel=7":   url + "?logfile=/var/log/g.log&loglevel=7",
		" loglevel=4 ; logfile=":              url + "?loglevel=4",
		"loglevel=4;write-behind=on;lock=yes": url + "?loglevel=4&write-behind=on&lock=yes",
		"loglevel=4;loglevel=5":               "",
		"logfile=/a?b":                        "",
		"transport=tcp":                       "",
	} {
		got, err := GlusterOptions(url, opts)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", opts, got, err, want)
		}
	}
}
