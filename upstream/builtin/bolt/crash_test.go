package bolt

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/upstreamtest"
)

// crashWriters is how many goroutines of the child write, each to secrets of its own.
const crashWriters = 4

// childWrites writes as fast as it can until it is killed. It prints a line for each write
// after it was acknowledged: what, for which secret, and the version. Each writer adds versions
// 1, 2, 3… to its secret and moves a label of its own along every third time. Meanwhile everything
// that is there gets a new key, and the file is compacted again and again.
func childWrites(database, keyring string) error {
	s, err := Open(Options{Database: database, Options: builtin.Options{Keyring: keyring}})
	if err != nil {
		return err
	}
	failed := make(chan error, crashWriters+1)
	for w := range crashWriters {
		go func() { failed <- childWriter(s, crashSecret(w)) }()
	}
	go func() {
		_, err := s.RotateKey(context.Background(), false)
		err = errors.Join(err, s.Reencrypt(context.Background(), nil))
		for err == nil {
			err = s.Compact(context.Background())
		}
		failed <- err
	}()
	return <-failed
}

func childWriter(s *Store, name upstream.SecretName) error {
	ctx := context.Background()
	acknowledge := func(what string, n int, err error) error {
		if err == nil {
			fmt.Printf("%s %s %d\n", what, name, n)
		}
		return err
	}
	n, err := currentVersion(s, upstream.SecretRef{SecretName: name})
	if errors.Is(err, upstream.ErrNotFound) {
		n = 1
		in := upstream.CreateSecretInput{SecretName: name, VersionID: crashVersion(n), SecretData: crashValue(name, n)}
		err = acknowledge("put", n, only(s.CreateSecret(ctx, in)))
	}
	for ; err == nil; n++ {
		next := n + 1
		_, err = s.PutSecretValue(ctx, upstream.PutSecretValueInput{SecretName: name, VersionID: crashVersion(next), SecretData: crashValue(name, next)})
		err = acknowledge("put", next, err)
		if err == nil && next%3 == 0 {
			err = acknowledge("third", next, s.UpdateSecretVersionStage(ctx, upstream.UpdateSecretVersionStageInput{SecretName: name, VersionStage: "third", MoveToVersion: crashVersion(next)}))
		}
	}
	return err
}

func crashSecret(w int) upstream.SecretName { return upstream.SecretName(fmt.Sprint("crash/", w)) }
func crashVersion(n int) upstream.VersionID { return upstream.VersionID(strconv.Itoa(n)) }

// crashValue is a value of a size of its own, in some cases larger than a page.
func crashValue(name upstream.SecretName, n int) upstream.SecretData {
	return secret(fmt.Sprintf("%s %d %s", name, n, strings.Repeat("x", n*37%6000)))
}

// currentVersion returns the number of the version that ref stands for, if it has the value
// that was written.
func currentVersion(s *Store, ref upstream.SecretRef) (int, error) {
	v, err := s.GetSecretValue(context.Background(), ref)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(string(v.VersionID))
	if err == nil && !v.SecretData.Equal(crashValue(ref.SecretName, n)) {
		err = errors.New("wrong value")
	}
	return n, err
}

// acknowledged is what the child said before it was killed :: "put crash/0" → version.
type acknowledged map[string]int

func (a acknowledged) read(line string) {
	var what, name string
	var n int
	if c, err := fmt.Sscanf(line, "%s %s %d", &what, &name, &n); err != nil || c != 3 || !strings.HasSuffix(line, "\n") {
		return // cut off by the kill
	}
	a[what+" "+name] = n
}

// child is this test binary, started again.
type child struct {
	*exec.Cmd
	out *bufio.Reader
}

func startChild(tb testing.TB, opts Options) *child {
	tb.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDatabase+"="+opts.Database, childKeyring+"="+opts.Keyring)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(tb, errors.Join(err, cmd.Start()))
	return &child{cmd, bufio.NewReader(out)}
}

// kill ends the child, which may have ended by itself.
func (c *child) kill() {
	_ = c.Process.Kill()
	_ = c.Wait()
}

// TestKilledWhileWriting kills a writing child at random moments. Each time, everything that
// was acknowledged must be there, and each secret must satisfy the label rules.
func TestKilledWhileWriting(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs SIGKILL")
	}
	t.Parallel()
	kills := 60
	if testing.Short() {
		kills = 6
	}
	// Two databases at a time: starting a child is mostly waiting.
	const lanes = 2
	var wg sync.WaitGroup
	for lane := range lanes {
		opts, acked := testOptions(t), acknowledged{}
		wg.Go(func() {
			for i := lane; i < kills && !t.Failed(); i += lanes {
				killOnce(t, opts, acked, time.Duration(rand.IntN(40_000))*time.Microsecond)
			}
			puts := 0
			for w := range crashWriters {
				puts += acked["put "+string(crashSecret(w))]
			}
			if puts < kills/lanes { // each child acknowledges one at least
				t.Errorf("only %d writes were acknowledged: the test shows nothing", puts)
			}
		})
	}
	wg.Wait()
}

func killOnce(t *testing.T, opts Options, acked acknowledged, after time.Duration) {
	c := startChild(t, opts)
	defer c.kill()
	line, err := c.out.ReadString('\n')
	if err != nil {
		t.Errorf("the child ended without a write: %v", err)
		return
	}
	time.AfterFunc(after, func() { _ = c.Process.Kill() })
	for ; err == nil; line, err = c.out.ReadString('\n') {
		acked.read(line)
	}
	c.kill()

	s, err := Open(opts)
	if err != nil {
		t.Errorf("open after the kill: %v", err)
		return
	}
	defer s.Close()
	for w := range crashWriters {
		checkCrashed(t, s, crashSecret(w), acked)
	}
	checkRules(t, s)
}

// checkCrashed compares what a writer was told with what is there. The write that was under way
// may be there too.
func checkCrashed(t *testing.T, s *Store, name upstream.SecretName, acked acknowledged) {
	put, third := "put "+string(name), "third "+string(name)
	if acked[put] == 0 {
		return
	}
	n, err := currentVersion(s, upstream.SecretRef{SecretName: name})
	if err != nil || n != acked[put] && n != acked[put]+1 {
		t.Errorf("%s: current is version %d, %v; acknowledged was %d", name, n, err, acked[put])
	}
	acked[put] = n                      // seen now, so it must stay
	for i := max(1, n-8); i <= n; i++ { // 10 versions, of which one may be kept by its label
		if _, err := currentVersion(s, upstream.SecretRef{SecretName: name, VersionID: crashVersion(i)}); err != nil {
			t.Errorf("%s version %d: %v", name, i, err)
		}
	}
	if previous, err := currentVersion(s, upstream.SecretRef{SecretName: name, VersionStage: upstream.ACSPrevious}); n > 1 && (err != nil || previous != n-1) {
		t.Errorf("%s: previous is version %d, %v; want %d", name, previous, err, n-1)
	}
	if at, err := currentVersion(s, upstream.SecretRef{SecretName: name, VersionStage: "third"}); acked[third] > 0 && (err != nil || at < acked[third] || at > n) {
		t.Errorf("%s: label third is on version %d, %v; acknowledged was %d", name, at, err, acked[third])
	}
}

// checkRules checks every secret against the label rules, whatever its history was.
func checkRules(tb testing.TB, s *Store) {
	tb.Helper()
	upstreamtest.CheckRules(tb, s, cmp.Or(s.opts.MaxVersions, 10))
}

func TestTwoProcesses(t *testing.T) {
	t.Parallel()
	opts := testOptions(t)
	c := startChild(t, opts)
	defer c.kill()
	must(t, only(c.out.ReadString('\n')))
	go func() { _, _ = io.Copy(io.Discard, c.out) }()
	begin := time.Now()
	opts.lockTimeout = 100 * time.Millisecond
	_, err := Open(opts)
	wantErr(t, err, ErrLocked)
	wantErr(t, err, upstream.ErrUnavailable)
	if d := time.Since(begin); d < 90*time.Millisecond {
		t.Errorf("gave up after %v", d)
	}
	if err != nil && !strings.Contains(err.Error(), "another process (a running agent?)") {
		t.Errorf("unclear: %v", err)
	}
	time.AfterFunc(50*time.Millisecond, func() { _ = c.Process.Kill() })
	opts.lockTimeout = time.Minute
	mustOpen(t, opts) // waits for the other to go
	opts.lockTimeout = time.Millisecond
	_, err = Open(opts)
	wantErr(t, err, ErrLocked) // also within one process
}
