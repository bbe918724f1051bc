package tgtconf

import (
	"fmt"
	"net/url"
	"strings"
)

// RBDOptions adds the bsopts of tgt's rbd store to the URL of an image:
// "conf=FILE;id=CLIENT;cluster=NAME;virsecretuuid=UUID", each at most once. An
// empty one is as if it were not there. A cephx_key is refused, as the URL is
// shown to everybody.
func RBDOptions(image, opts string) (string, error) {
	names := map[string]string{"conf": "conf", "id": "id", "cluster": "cluster", "virsecretuuid": "secret"}
	sep := "?"
	for opt := range strings.SplitSeq(opts, ";") {
		key, value, _ := strings.Cut(strings.TrimSpace(opt), "=")
		if key == "" {
			continue
		}
		name, ok := names[key]
		switch {
		case key == "cephx_key":
			return "", fmt.Errorf("rbd takes no cephx_key: put the key into a keyring that the configuration file names, and give id=")
		case !ok:
			return "", fmt.Errorf("rbd has no bsopts %q, only conf, id, cluster and virsecretuuid", key)
		case value == "":
			continue
		}
		delete(names, key)
		image += sep + name + "=" + strings.ReplaceAll(strings.ReplaceAll(url.PathEscape(value), "%2F", "/"), "&", "%26")
		sep = "&"
	}
	return image, nil
}
