//go:build unix

package keyfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDeniedSaysWhoseFileItIs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused := &fs.PathError{Op: "open", Path: path, Err: fs.ErrPermission}
	err := Denied(path, refused)
	for _, want := range []string{refused.Error() + ": ", path + " belongs to ", fmt.Sprintf("uid %d", os.Getuid()), ", mode 0600, and this process is "} {
		if !strings.Contains(err.Error(), want) || !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%q is not in %q", want, err)
		}
	}
	if again := Denied(filepath.Dir(path), err); again.Error() != err.Error() {
		t.Errorf("described twice: %v", again)
	}
	if missing := Denied(filepath.Join(path+".d", "x"), refused); !strings.Contains(missing.Error(), filepath.Dir(path)+" belongs to ") {
		t.Errorf("of what is missing the folder is described that is there: %v", missing)
	}
	for _, other := range []error{nil, fs.ErrNotExist} {
		if got := Denied(path, other); got != other {
			t.Errorf("Denied changed %v to %v", other, got)
		}
	}
}
