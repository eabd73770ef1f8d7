package render

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

func TestCommand(t *testing.T) {
	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "MARKER-of-the-environment")
	password := `MARKER<&>"\` + "\u00e4'end"
	object, err := json.Marshal(map[string]string{"password": password})
	must(t, err)
	nested, err := json.Marshal(map[string]string{"SecretData": string(object)})
	must(t, err)
	hide := []upstream.SecretValue{{SecretData: upstream.NewSecretData(object)}}
	run := func(c Command, script string) (string, string, error) {
		var log upstreamtest.Buffer
		c.Argv, c.Hide = []string{"/bin/sh", "-c", script}, hide
		answer, err := c.Run(t.Context(), log.Logger())
		return string(answer), log.String(), err
	}

	// What it reads and prints is masked, however it is encoded, and nothing else comes from us.
	_, log, err := run(Command{Input: nested}, "cat; env; ls -l /proc/self/fd/0; exit 3")
	if err == nil || strings.Contains(err.Error()+log, "MARKER") || !strings.Contains(log, "pipe:") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("error %v, log %s", err, log)
	}

	// So it is as a part of a URL, in the other alphabet of base64, and where a number or a line is a value.
	hide = append(hide, upstream.SecretValue{SecretData: upstream.NewSecretData([]byte(`{"pin":8041.5,"url":"a b?c>>>\u00ff/d","pem":"-----\nfirst line\nsecond line\n-----"}`))})
	said := "8041.5 a%20b%3Fc%3E%3E%3E%C3%BF%2Fd " + base64.RawURLEncoding.EncodeToString([]byte("a b?c>>>\u00ff/d")) + "\nsecond line"
	if _, log, err := run(Command{}, "echo '"+said+"'; exit 3"); err == nil || !strings.HasSuffix(err.Error(), ": [masked] [masked] [masked] [masked]") || strings.Contains(log, "8041") {
		t.Errorf("error %v, log %s", err, log)
	}

	// A shell's echo makes of the backslashes what it likes.
	hide = []upstream.SecretValue{{SecretData: upstream.NewSecretData([]byte(`{"password":")$\"+e$2W;>?5|O*>b;%I\\eI)!"}`))}}
	for _, spelled := range []string{`)$\\\"+e$2W;>?5|O*>b;%I\\\\eI)!`, `)$\\"+e$2W;>?5|O*>b;%I\\eI)!`, `)$"+e$2W;>?5|O*>b;%I\eI)!`, `)%24%22%2Be%242W%3B%3E%3F5%7CO*%3Eb%3B%25I%5CeI)!`} {
		if _, log, err := run(Command{}, "cat <<'E'\n"+spelled+"\nE\nexit 3"); err == nil || !strings.HasSuffix(err.Error(), "exit status 3: [masked]") || strings.Contains(log, "2W") {
			t.Errorf("error %v, log %s", err, log)
		}
	}

	// An answer is exact, and no log hears of it, nor of what standard error tells of it.
	answer, log, err := run(Command{Input: []byte("in"), Answer: 100}, `printf '%s MARKER-new\n' "$(cat)"; echo "made MARKER-new" >&2`)
	if err != nil || answer != "in MARKER-new\n" || strings.Contains(log, "MARKER-new") || !strings.Contains(log, "made [masked]") {
		t.Errorf("answer %q, error %v, log %s", answer, err, log)
	}
	if _, _, err := run(Command{Answer: 5}, "printf 123456"); err == nil || !strings.Contains(err.Error(), "larger than 5 bytes") {
		t.Errorf("an answer that is too large: %v", err)
	}

	// It ends with its timeout or its context, and all that it has started with it.
	dir := t.TempDir()
	begun := time.Now()
	if _, _, err := run(Command{Timeout: 300 * time.Millisecond}, "(sleep 5; echo late > "+dir+"/late) & sleep 60"); err == nil || !strings.Contains(err.Error(), "not finished after 300ms") {
		t.Errorf("a command that hangs: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	if _, err := (Command{Argv: []string{"/bin/sleep", "60"}}).Run(ctx, discard); err == nil {
		t.Error("a command went on after its context")
	}
	if took := time.Since(begun); took > 20*time.Second {
		t.Errorf("that took %s", took)
	}
	if _, err := os.Stat(dir + "/late"); err == nil {
		t.Error("what a command had started went on")
	}
}
