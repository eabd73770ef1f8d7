//go:build unix

package agent_test

import (
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// TestATokenFileChangesItsOwner: nothing but the owner of the file tells that it is of use, or no
// longer.
func TestATokenFileChangesItsOwner(t *testing.T) {
	needsOwners(t)
	w := start(t, shortTempDir(t), withCallers(edited(threeCallers, "{name: web, ", "{name: web, uids: [65530], ")))
	web, all := w.read("web.token"), w.read("all.token")
	shutOut := func() bool { return strings.Contains(w.ask("/ready", all).body, "caller web, shut out") }
	must(t, os.Chown(w.path("web.token"), 65533, -1))
	w.eventually("the caller of a stranger's file is shut out", shutOut)
	must(t, os.Chown(w.path("web.token"), 65530, -1))
	w.eventually("with its own it is back", func() bool { return !shutOut() })
	if got := w.read("web.token"); got != web {
		t.Error("the token was replaced")
	}
	must(t, os.Chown(w.path("all.token"), 65530, -1)) // which is a user of web only
	w.eventually("the caller of another user is shut out", func() bool { return w.statuses("web/db", all)[0] == http.StatusForbidden })
}

// TestAnApplicationOfAnotherUserReadsItsToken: the file is made for its group, or one that is there
// is given to it, and to no other.
func TestAnApplicationOfAnotherUserReadsItsToken(t *testing.T) {
	needsOwners(t)
	for name, text := range map[string]string{
		"a caller": withCallers(edited(threeCallers, "web.token, ", `web.token, tokenGroup: "65520", `)),
		"everyone": edited(withCallers(""), "  callers:\n\n", "  tokenFile: ./web.token\n  tokenMode: \"0640\"\n  tokenGroup: \"65520\"\n"),
	} {
		for _, before := range []string{"missing", "there"} {
			t.Run(name+", "+before, func(t *testing.T) {
				dir := shortTempDir(t)
				must(t, os.Chmod(dir, 0o755))
				if before == "there" {
					write(t, dir, map[string]string{"web.token": strings.Repeat("t", 64)})
				}
				w := start(t, dir, text)
				for gid, can := range map[uint32]bool{65520: true, 65521: false} {
					cat := exec.Command("cat", "web.token")
					cat.Dir = dir
					cat.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65533, Gid: gid}}
					token, err := cat.Output()
					if (err == nil) != can || can && w.statuses("web/db", strings.TrimSpace(string(token)))[0] != http.StatusOK {
						t.Errorf("with the group %d: %q %v", gid, token, err)
					}
				}
				if info, err := os.Stat(w.path("web.token")); err != nil || info.Mode().Perm() != 0o640 {
					t.Error(info.Mode(), err)
				}
			})
		}
	}
}
