package nbd_test

import (
	"errors"
	"testing"
)

var errAny = errors.New("any error")

func isErr(err, want error) bool { return errors.Is(err, want) }

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
