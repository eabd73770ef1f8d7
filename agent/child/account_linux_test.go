package child

import (
	"errors"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"

	"secretagent/upstream"
)

func TestAccountsAreValidated(t *testing.T) {
	notRoot := "user: 12345: needs an agent that root has started"
	if os.Geteuid() == 0 {
		notRoot = ""
	}
	for _, c := range []struct{ user, group, want string }{
		{"", "", ""},
		{"", "12345", "group: 12345: needs a user"},
		{"no-such-user", "", "user: "},
		{"12345", "no-such-group", "group: "},
		{"root", "12345", "user: root: must be another user than root"},
		{"0", "", "user: 0: must be another user than root"},
		{"2147480001", "", "group: is missing: the system does not know user 2147480001"},
		{"12345", "12346", notRoot},
	} {
		opts := validOptions()
		opts.User, opts.Group = c.user, c.group
		problems, _ := errors.AsType[upstream.OptionErrors](opts.Validate())
		if got := problems.Err(); c.want == "" && got != nil || c.want != "" && (len(problems) != 1 || !strings.HasPrefix(got.Error(), c.want)) {
			t.Errorf("user %q, group %q: got %v, want %q", c.user, c.group, got, c.want)
		}
	}
}

// TestApplicationOfAnotherUserHasNoRightsOfRoot lets an application look at itself and at a file
// of ours that only we may read.
func TestApplicationOfAnotherUserHasNoRightsOfRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can start programs as another user")
	}
	folder := t.TempDir()
	for dir := folder; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		must(t, os.Chmod(dir, 0o755))
	}
	ours, open := filepath.Join(folder, "ours"), filepath.Join(folder, "open")
	must(t, os.WriteFile(ours, []byte("x"), 0o600))
	must(t, os.WriteFile(open, []byte("x"), 0o644))
	const script = `id -u; id -g; id -G; echo "$HOME $USER $LOGNAME"; grep -c '^Cap[EPA].*:.*[1-9a-f]' /proc/self/status; cat "$OURS"; cat "$OPEN"`
	t.Setenv("OURS", ours)
	t.Setenv("OPEN", open)
	t.Setenv("HOME", "/root")
	t.Setenv("USER", "root")
	t.Setenv("LOGNAME", "root")
	nobody, err := user.Lookup("nobody")
	if err != nil || nobody.Uid != "65534" || nobody.Gid != "65534" {
		t.Skipf("nobody is %+v here: %v", nobody, err)
	}
	for _, c := range []struct{ user, group, want string }{
		{"nobody", "12346", "65534\n12346\n12346 65534\n" + nobody.HomeDir + " nobody nobody\n0\nx"},
		{"nobody", "", "65534\n65534\n65534\n" + nobody.HomeDir + " nobody nobody\n0\nx"},
		{"12345", "12346", "12345\n12346\n12346\n/root root root\n0\nx"},
	} {
		r := newReal(t, Options{Command: []string{"sh", "-c", script}, User: c.user, Group: c.group})
		if err := r.wait(t); err != nil {
			t.Errorf("as %q: %v", c.user, err)
		}
		if got := r.out.String(); got != c.want || !strings.Contains(r.log.String(), "ermission denied") {
			t.Errorf("as %q and %q: got %q, want %q; standard error:\n%s", c.user, c.group, got, c.want, r.log)
		}
	}
}
