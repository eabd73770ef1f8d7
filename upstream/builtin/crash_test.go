package builtin

import (
	"bufio"
	"context"
	"fmt"
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
)

// children are what a re-executed test binary can do.
var children = map[string]func(database, keyring string) error{
	"write":     childWrites,
	"reencrypt": childReencrypts,
	"hold":      childHolds,
}

// crashWriters is how many goroutines of the child write, each to secrets of its own.
const crashWriters = 4

// childWrites writes as fast as it can until it is killed. It prints a line for each write
// after it was acknowledged. Each writer adds versions 1, 2, 3… to its secret, moves a label
// of its own along every third time, and now and then recreates another secret.
func childWrites(database, keyring string) error {
	s, err := Open(Options{Database: database, Keyring: keyring, lockTimeout: 10 * time.Second})
	if err != nil {
		return err
	}
	ctx := context.Background()
	failed := make(chan error, crashWriters)
	for w := range crashWriters {
		go func() { failed <- childWriter(ctx, s, w) }()
	}
	return <-failed
}

func childWriter(ctx context.Context, s *Store, w int) error {
	name := crashSecret(w)
	n := 0
	if v, err := s.GetSecretValue(ctx, secretRef(name)); err == nil {
		if n, err = strconv.Atoi(string(v.VersionID)); err != nil {
			return err
		}
	} else {
		n = 1
		if _, err := s.CreateSecret(ctx, upstream.CreateSecretInput{SecretName: name, VersionID: "1", SecretData: crashValue(name, 1)}); err != nil {
			return err
		}
		fmt.Printf("put %d %d\n", w, n)
	}
	for {
		n++
		id := upstream.VersionID(strconv.Itoa(n))
		if _, err := s.PutSecretValue(ctx, upstream.PutSecretValueInput{SecretName: name, VersionID: id, SecretData: crashValue(name, n)}); err != nil {
			return err
		}
		fmt.Printf("put %d %d\n", w, n)
		if n%3 == 0 {
			if err := s.UpdateSecretVersionStage(ctx, upstream.UpdateSecretVersionStageInput{SecretName: name, VersionStage: "third", MoveToVersion: id}); err != nil {
				return err
			}
			fmt.Printf("third %d %d\n", w, n)
		}
		if n%7 == 0 {
			other := name + "/other"
			if _, err := s.DeleteSecret(ctx, upstream.DeleteSecretInput{SecretName: other, ForceDeleteWithoutRecovery: true}); err == nil {
				fmt.Printf("gone %d %d\n", w, n)
			}
			if _, err := s.CreateSecret(ctx, upstream.CreateSecretInput{SecretName: other, VersionID: id, SecretData: crashValue(other, n)}); err != nil {
				return err
			}
			fmt.Printf("other %d %d\n", w, n)
		}
	}
}

func crashSecret(w int) upstream.SecretName {
	return upstream.SecretName("crash/" + strconv.Itoa(w))
}

// crashValue is a value of a size of its own, in some cases larger than a page.
func crashValue(name upstream.SecretName, n int) upstream.SecretData {
	return secret(fmt.Sprintf("%s %d %s", name, n, strings.Repeat("x", n*37%6000)))
}

// acknowledged is what the child said before it was killed.
type acknowledged struct {
	put, third, other [crashWriters]int
	gone              [crashWriters]int
	lines             int
}

func (a *acknowledged) read(line string) {
	var what string
	var w, n int
	if c, err := fmt.Sscanf(line, "%s %d %d", &what, &w, &n); err != nil || c != 3 || !strings.HasSuffix(line, "\n") {
		return // cut off by the kill
	}
	a.lines++
	switch what {
	case "put":
		a.put[w] = n
	case "third":
		a.third[w] = n
	case "other":
		a.other[w] = n
	case "gone":
		a.gone[w] = n
	}
}

// startChild starts this test binary as a child.
func startChild(tb testing.TB, mode string, opts Options) (*exec.Cmd, *bufio.Reader) {
	tb.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childMode+"="+mode, childMode+"_DB="+opts.Database, childMode+"_KEYRING="+opts.Keyring)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	return cmd, bufio.NewReader(out)
}

// TestKilledWhileWriting kills a writing child at random moments. Each time, everything that
// was acknowledged must be there, and each secret must satisfy the label rules.
func TestKilledWhileWriting(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs SIGKILL")
	}
	kills := 200
	if testing.Short() {
		kills = 20
	}
	// Two databases at a time: starting a child is mostly waiting.
	const lanes = 2
	var wg sync.WaitGroup
	var mu sync.Mutex
	total := 0
	for lane := range lanes {
		opts := testOptions(t)
		wg.Add(1)
		go func() {
			defer wg.Done()
			var acked acknowledged
			random := rand.New(rand.NewPCG(uint64(lane), uint64(time.Now().UnixNano())))
			for i := lane; i < kills && !t.Failed(); i += lanes {
				killOnce(t, opts, &acked, time.Duration(random.IntN(40_000))*time.Microsecond)
			}
			mu.Lock()
			defer mu.Unlock()
			total += acked.lines
		}()
	}
	wg.Wait()
	t.Logf("%d kills, %d acknowledged writes, none lost", kills, total)
}

func killOnce(t *testing.T, opts Options, acked *acknowledged, after time.Duration) {
	cmd, out := startChild(t, "write", opts)
	first, err := out.ReadString('\n')
	if err != nil {
		t.Errorf("the child ended without a write: %v, %v", err, cmd.Wait())
		return
	}
	acked.read(first)
	timer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	for {
		line, err := out.ReadString('\n')
		acked.read(line)
		if err != nil {
			break
		}
	}
	_ = cmd.Wait()

	s, err := Open(opts)
	if err != nil {
		t.Errorf("open after the kill: %v", err)
		return
	}
	defer s.Close()
	for w := range crashWriters {
		checkCrashed(t, s, w, acked)
	}
	checkRules(t, s)
}

// checkCrashed compares what writer w was told with what is there. The write that was under
// way may be there too.
func checkCrashed(t *testing.T, s *Store, w int, acked *acknowledged) {
	ctx := context.Background()
	name := crashSecret(w)
	if acked.put[w] == 0 {
		return
	}
	v, err := s.GetSecretValue(ctx, secretRef(name))
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	n, _ := strconv.Atoi(string(v.VersionID))
	if n != acked.put[w] && n != acked.put[w]+1 {
		t.Errorf("%s: current is version %d, acknowledged was %d", name, n, acked.put[w])
	}
	acked.put[w] = n                    // seen now, so it must stay
	for i := max(1, n-8); i <= n; i++ { // 10 versions, of which one may be kept by its label
		v, err := s.GetSecretValue(ctx, upstream.SecretRef{SecretName: name, VersionID: upstream.VersionID(strconv.Itoa(i))})
		if err != nil || !v.SecretData.Equal(crashValue(name, i)) {
			t.Errorf("%s version %d: wrong value, or %v", name, i, err)
		}
	}
	if n > 1 {
		v, err := s.GetSecretValue(ctx, upstream.SecretRef{SecretName: name, VersionStage: upstream.ACSPrevious})
		if err != nil || string(v.VersionID) != strconv.Itoa(n-1) {
			t.Errorf("%s: previous is version %s, %v; want %d", name, v.VersionID, err, n-1)
		}
	}
	if acked.third[w] > 0 {
		v, err := s.GetSecretValue(ctx, upstream.SecretRef{SecretName: name, VersionStage: "third"})
		if third, _ := strconv.Atoi(string(v.VersionID)); err != nil || third < acked.third[w] || third > n {
			t.Errorf("%s: label third is on version %s, %v; acknowledged was %d", name, v.VersionID, err, acked.third[w])
		}
	}
	if acked.other[w] > 0 {
		other := name + "/other"
		v, err := s.GetSecretValue(ctx, secretRef(other))
		id, _ := strconv.Atoi(string(v.VersionID))
		switch {
		case err == nil && id >= acked.other[w] && v.SecretData.Equal(crashValue(other, id)):
		case upstream.Code(err) == "Forbidden.ResourceNotFound" && (n >= acked.other[w]+7 || acked.gone[w] > acked.other[w]):
			// killed between delete and create
		default:
			t.Errorf("%s: version %d, %v; acknowledged was %d", other, id, err, acked.other[w])
		}
		if err != nil {
			acked.other[w] = 0
		}
	}
}

// checkRules checks every secret against the label rules, whatever its history was.
func checkRules(tb testing.TB, s *Store) {
	tb.Helper()
	err := s.view(context.Background(), "check", upstream.SecretRef{}, func(t *tx) error {
		return t.each(context.Background(), func(name upstream.SecretName, r *record) error {
			for _, problem := range brokenRules(&r.versionSet, s.opts.MaxVersions) {
				tb.Errorf("%s: %s", name, problem)
			}
			for i := range r.versions {
				if _, err := t.value(name, &r.versions[i]); err != nil {
					tb.Errorf("%s: %v", name, err)
				}
			}
			return nil
		})
	})
	if err != nil {
		tb.Errorf("check: %v", err)
	}
}

// childReencrypts re-encrypts and says after each batch how far it is.
func childReencrypts(database, keyring string) error {
	s, err := Open(Options{Database: database, Keyring: keyring, lockTimeout: 10 * time.Second})
	if err != nil {
		return err
	}
	return s.Reencrypt(context.Background(), func(done, total int) { fmt.Printf("%d of %d\n", done, total) })
}

// TestKilledWhileReencrypting kills a re-encryption after its first batches; the next one goes
// on, and every value stays readable throughout.
func TestKilledWhileReencrypting(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs SIGKILL")
	}
	opts := testOptions(t)
	s := mustOpen(t, opts)
	const secrets = 200 // about five batches
	ctx := context.Background()
	value := func(i int) string { return fmt.Sprint(i, strings.Repeat("v", 25_000)) }
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < secrets; i += 8 {
				mustCreate(t, s, fmt.Sprintf("re/%03d", i), "v1", value(i))
			}
		})
	}
	wg.Wait()
	primary, err := s.RotateKey(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	resumed := false
	for round := range 6 {
		cmd, out := startChild(t, "reencrypt", opts)
		for range 1 + round%2 {
			if _, err := out.ReadString('\n'); err != nil {
				break
			}
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		s := mustOpen(t, opts)
		for i := range secrets {
			wantValue(t, s, fmt.Sprintf("re/%03d", i), value(i))
		}
		keys, err := s.Keys()
		if err != nil {
			t.Fatal(err)
		}
		if n := valuesUnder(keys, primary); n > 0 && n < secrets {
			resumed = true
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if !resumed {
		t.Error("no kill came between two batches: the test shows nothing")
	}
	s = mustOpen(t, opts)
	if err := s.Reencrypt(ctx, nil); err != nil {
		t.Fatal(err)
	}
	keys, err := s.Keys()
	if err != nil {
		t.Fatal(err)
	}
	if n := valuesUnder(keys, primary); n != secrets {
		t.Errorf("%d of %d values are under the primary key", n, secrets)
	}
	for i := range secrets {
		wantValue(t, s, fmt.Sprintf("re/%03d", i), value(i))
	}
}

func valuesUnder(keys []Key, id string) int {
	for _, k := range keys {
		if k.ID == id {
			return k.Values
		}
	}
	return -1
}

// childHolds opens the database and waits to be killed.
func childHolds(database, keyring string) error {
	if _, err := Open(Options{Database: database, Keyring: keyring}); err != nil {
		return err
	}
	fmt.Println("open")
	time.Sleep(time.Minute)
	return nil
}
