package upstream_test

import (
	"errors"
	"io/fs"
	"testing"

	"secretagent/upstream"
)

func TestOptionErrorsCollectAndNameKeys(t *testing.T) {
	var inner, outer upstream.OptionErrors
	if inner.Err() != nil {
		t.Error("no problem is an error")
	}
	inner.Addf("host", "a b", "must be a host name")
	outer.Add("endpoints[0]", inner.Err())
	outer.Add("keyring", fs.ErrNotExist)
	outer.Add("nothing", nil)
	const want = "endpoints[0].host: a b: must be a host name\nkeyring: file does not exist"
	if err := outer.Err(); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if !errors.Is(outer.Err(), fs.ErrNotExist) {
		t.Error("the cause is lost")
	}
	if one, ok := errors.AsType[*upstream.OptionError](outer.Err()); !ok || one.Key != "endpoints[0].host" {
		t.Errorf("the first problem is %v", one)
	}
}
