package rotation_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/agent/rotation"
	"secretagent/upstream"
	"secretagent/upstream/kms"
	"secretagent/upstream/kmsserver"
	"secretagent/upstream/upstreamtest"
)

const secret = "app/db"

type login struct{ Username, Password string }

// world is a secret and a system that knows two accounts with one password each. The system has
// to accept at every moment what ACSCurrent says.
type world struct {
	t     testing.TB
	store upstream.Manager // the truth, without faults

	mu        sync.Mutex
	passwords map[string]string
	sets      int // runs of set
	effective int // of these, that have changed something
	tests     int
	checks    int
	currents  map[upstream.VersionID]bool // that ACSCurrent has been on
	kills     map[string]int              // :: call or command that a process died at
	fail      func(step string) error     // of a command; nil: none does
	armed     bool                        // the process that runs set next dies of it
}

func newWorld(t testing.TB, store upstream.Manager) *world {
	t.Helper()
	w := &world{t: t, store: store, passwords: map[string]string{"a": "first", "b": "other"}, currents: map[upstream.VersionID]bool{}, kills: map[string]int{}}
	_, err := store.CreateSecret(context.Background(), upstream.CreateSecretInput{
		SecretName: secret, VersionID: "v1", SecretData: upstream.NewSecretData([]byte(`{"host": "db",  "Username":"a","Password":"first","port":5432}`)),
	})
	must(t, err)
	return w
}

// rotation is how the secret is rotated.
func (w *world) rotation() rotation.Rotation {
	return rotation.Rotation{
		Secret: secret, Every: 24 * time.Hour, Jitter: time.Hour, MaxAttempts: 8,
		New: rotation.NewValue{
			Password: &rotation.Password{Field: "Password", RandomPasswordInput: upstream.RandomPasswordInput{RequireEachIncludedType: true}},
			Pair:     &rotation.Pair{Field: "Username", Users: []string{"a", "b"}},
		},
		Set:  &rotation.Command{Argv: []string{"set"}, Timeout: time.Minute},
		Test: &rotation.Command{Argv: []string{"test"}, Timeout: 30 * time.Second},
	}
}

// login returns what a version says.
func (w *world) login(data string) (l login) {
	w.t.Helper()
	must(w.t, json.Unmarshal([]byte(data), &l))
	return l
}

// check is what has to be true at every moment.
func (w *world) check(when string) {
	w.t.Helper()
	v, err := w.store.GetSecretValue(context.Background(), upstream.SecretRef{SecretName: secret})
	must(w.t, err)
	l := w.login(string(v.SecretData.Reveal()))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.checks++
	w.currents[v.VersionID] = true
	if w.passwords[l.Username] != l.Password {
		w.t.Fatalf("%s: the target does not accept what ACSCurrent, version %s, says", when, v.VersionID)
	}
}

// run is a command.
func (w *world) run(_ context.Context, e rotation.Execution) ([]byte, error) {
	var in rotation.Commands
	must(w.t, json.Unmarshal(e.Input, &in))
	pending, current := w.login(in.Pending.SecretData), w.login(in.Current.SecretData)
	if pending.Username == current.Username || in.SecretName != secret || e.Answer != 0 || len(e.Hide) != 2 {
		w.t.Errorf("%s got %v", e.Argv[0], in.SecretName)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		if err := w.fail(e.Argv[0]); err != nil {
			return nil, err
		}
	}
	if e.Argv[0] == "set" {
		w.sets++
		if w.passwords[pending.Username] != pending.Password {
			w.effective++
			w.passwords[pending.Username] = pending.Password
		}
		return nil, nil
	}
	w.tests++
	if w.passwords[pending.Username] != pending.Password {
		return nil, errors.New("login refused")
	}
	return nil, nil
}

// versions returns all versions, oldest first, and the holder of each label.
func (w *world) versions() (ids []upstream.VersionID, labels map[upstream.VersionStage]upstream.VersionID) {
	w.t.Helper()
	out, err := w.store.ListSecretVersionIDs(context.Background(), upstream.ListSecretVersionIDsInput{SecretName: secret, IncludeDeprecated: true, Page: upstream.Page{Size: 100}})
	must(w.t, err)
	labels = map[upstream.VersionStage]upstream.VersionID{}
	for _, v := range slices.Backward(out.Versions) {
		ids = append(ids, v.VersionID)
		for _, stage := range v.VersionStages {
			labels[stage] = v.VersionID
		}
	}
	return ids, labels
}

// process is one agent, which dies at some call: before it has had an effect, or after.
type process struct {
	*world
	rotation.Upstream
	left int // calls and commands until it dies; negative: it lives
	late bool
	die  context.CancelFunc
	dead bool
	mu   sync.Mutex
}

var errKilled = errors.New("killed")

// do is a call or a command.
func (p *process) do(what string, act func() error) error {
	p.mu.Lock()
	p.left--
	now := p.left == 0
	if what == "command set" {
		p.world.mu.Lock()
		now, p.armed = now || p.armed, false
		p.world.mu.Unlock()
	}
	if p.dead || now && !p.late {
		p.kill("before " + what)
		p.mu.Unlock()
		return errKilled
	}
	p.mu.Unlock()
	p.check("before " + what)
	err := act()
	p.check("after " + what)
	if now {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.kill("after " + what)
		return errKilled
	}
	return err
}

// kill ends the process. The caller holds its mutex.
func (p *process) kill(when string) {
	if !p.dead {
		p.kills[when]++
	}
	p.dead = true
	p.die()
}

func (p *process) GetSecretValue(ctx context.Context, ref upstream.SecretRef) (v upstream.SecretValue, err error) {
	err = p.do("GetSecretValue", func() (err error) { v, err = p.Upstream.GetSecretValue(ctx, ref); return err })
	return v, err
}

func (p *process) PutSecretValue(ctx context.Context, in upstream.PutSecretValueInput) (v upstream.SecretVersion, err error) {
	err = p.do("PutSecretValue", func() (err error) { v, err = p.Upstream.PutSecretValue(ctx, in); return err })
	return v, err
}

func (p *process) UpdateSecretVersionStage(ctx context.Context, in upstream.UpdateSecretVersionStageInput) error {
	return p.do("UpdateSecretVersionStage", func() error { return p.Upstream.UpdateSecretVersionStage(ctx, in) })
}

func (p *process) ListSecretVersionIDs(ctx context.Context, in upstream.ListSecretVersionIDsInput) (out upstream.ListSecretVersionIDsOutput, err error) {
	err = p.do("ListSecretVersionIDs", func() (err error) { out, err = p.Upstream.ListSecretVersionIDs(ctx, in); return err })
	return out, err
}

func (p *process) execute(ctx context.Context, e rotation.Execution) (answer []byte, err error) {
	err = p.do("command "+e.Argv[0], func() (err error) { answer, err = p.run(ctx, e); return err })
	return answer, err
}

// start makes a process, which dies at its nth call.
func (w *world) start(t testing.TB, up rotation.Upstream, n int, late bool) (r *rotation.Rotator, p *process, ctx context.Context) {
	t.Helper()
	ctx, die := context.WithCancel(context.Background())
	t.Cleanup(die)
	p = &process{world: w, Upstream: up, left: n, late: late, die: die}
	r, err := rotation.New(rotation.Options{
		Rotations: []rotation.Rotation{w.rotation()}, Upstream: func() rotation.Upstream { return p }, Run: p.execute,
	})
	must(t, err)
	return r, p, ctx
}

// manyKills are enough for one before and after each kind of call.
const manyKills = 200

// rotateWithKills lets processes rotate each day and kills them, kills times altogether.
func (w *world) rotateWithKills(t testing.TB, up rotation.Upstream, kills int) {
	t.Helper()
	random := rand.New(rand.NewPCG(1, uint64(kills)))
	for killed := 0; killed < kills; {
		time.Sleep(25 * time.Hour) // with the jitter, a rotation is due
		for dead := true; dead && killed < kills; {
			r, p, ctx := w.start(t, up, 1+random.IntN(20), random.IntN(2) == 0)
			ctx, cancel := context.WithTimeout(ctx, 30*time.Minute)
			must(t, r.Run(ctx))
			cancel()
			if dead = p.dead; dead {
				killed++
			}
		}
	}
	r, _, ctx := w.start(t, up, -1, false) // one that lives, for a day
	ctx, cancel := context.WithTimeout(ctx, 26*time.Hour)
	defer cancel()
	must(t, r.Run(ctx))
	w.wantBetweenRotations(t)
	t.Logf("%d kills, %v, in %d rotations: set ran %d times, %d of them with an effect; test ran %d times; %d checks", kills, w.kills, len(w.currents)-1, w.sets, w.effective, w.tests, w.checks)
	if kills < manyKills {
		return
	}
	for _, what := range []string{"command set", "command test", "GetSecretValue", "ListSecretVersionIDs", "PutSecretValue", "UpdateSecretVersionStage"} {
		if w.kills["before "+what] == 0 || w.kills["after "+what] == 0 {
			t.Errorf("no process died before and after %s", what)
		}
	}
}

// wantBetweenRotations checks that nothing is left of one, and that each has set one password.
func (w *world) wantBetweenRotations(t testing.TB) {
	t.Helper()
	w.check("between rotations")
	_, labels := w.versions()
	if id, pending := labels["Pending"]; pending {
		t.Fatalf("version %s is still pending", id)
	}
	if w.effective != len(w.currents)-1 {
		t.Fatalf("%d rotations, in which set had an effect %d times", len(w.currents)-1, w.effective)
	}
}

func TestAKillAtEveryStep(t *testing.T) {
	for name, inBubble := range upstreams {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, agents []upstream.Manager) {
				kills := manyKills
				if name == "etcd" { // it waits for a network
					kills = 60
				}
				newWorld(t, agents[0]).rotateWithKills(t, agents[1], kills)
			})
		})
	}
}

// A process that dies at call n, for each n, and one that lives: the secret has one new version.
func TestOneKillLeavesOneNewVersion(t *testing.T) {
	for _, late := range []bool{false, true} {
		for n := 1; ; n++ {
			done := false
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, upstreamtest.NewFake())
				time.Sleep(25 * time.Hour)
				r, p, ctx := w.start(t, w.store, n, late)
				ctx, cancel := context.WithTimeout(ctx, time.Hour)
				defer cancel()
				must(t, r.Run(ctx))
				r, _, ctx = w.start(t, w.store, -1, false)
				ctx, cancel = context.WithTimeout(ctx, time.Hour)
				defer cancel()
				must(t, r.Run(ctx))
				ids, labels := w.versions()
				if len(ids) != 2 || labels[upstream.ACSCurrent] != ids[1] || labels[upstream.ACSPrevious] != "v1" || len(labels) != 2 || w.effective != 1 {
					t.Errorf("killed at call %d (late %v): versions %v, labels %v, %d effective sets", n, late, ids, labels, w.effective)
				}
				if st := r.Status()[0]; st.State != rotation.Scheduled || st.Next.IsZero() || st.Current != ids[1] || st.Error != "" {
					t.Errorf("status %+v", st)
				}
				done = !p.dead
			})
			if done {
				if n < 10 {
					t.Errorf("a rotation takes %d calls only", n-1)
				}
				break
			}
		}
	}
}

// Ten agents, one due rotation.
func TestTenAgentsRotateOnce(t *testing.T) {
	for name, days := range map[string]int{"fake": 20, "etcd": 2} {
		t.Run(name+", all live", func(t *testing.T) { upstreams[name](t, rotateOnce(days, false)) })
		t.Run(name+", the first one that sets dies", func(t *testing.T) { upstreams[name](t, rotateOnce(days, true)) })
	}
}

func rotateOnce(days int, kill bool) func(t *testing.T, agents []upstream.Manager) {
	return func(t *testing.T, agents []upstream.Manager) {
		w := newWorld(t, agents[0])
		most := 0
		for day := range days {
			var running sync.WaitGroup
			before := w.sets
			w.armed = kill
			ctx, stop := context.WithTimeout(t.Context(), 25*time.Hour+30*time.Minute)
			for _, agent := range agents {
				r, _, own := w.start(t, agent, -1, day%2 == 0)
				own, cancel := context.WithCancel(own)
				context.AfterFunc(ctx, cancel)
				running.Go(func() { must(t, r.Run(own)) })
			}
			running.Wait()
			stop()
			ids, labels := w.versions()
			if want := min(day+2, 10); len(w.currents) != day+2 || len(ids) != want || labels[upstream.ACSCurrent] != ids[len(ids)-1] {
				t.Fatalf("day %d: %d versions, labels %v", day, len(ids), labels)
			}
			most = max(most, w.sets-before)
			w.wantBetweenRotations(t)
		}
		if w.effective != days || !kill && w.sets != days || w.armed {
			t.Errorf("%d rotations: set ran %d times, %d of them with an effect", days, w.sets, w.effective)
		}
		t.Logf("%d agents, %d rotations: set ran %d times (at most %d for one), %d with an effect", len(agents), days, w.sets, most, w.effective)
	}
}

// TestKillsOverTheNetwork does the same with the client and the server of the KMS API, over a
// network that fails and loses answers.
func TestKillsOverTheNetwork(t *testing.T) {
	kills := 200
	if testing.Short() {
		kills = 20
	}
	store := openStore(t)
	w := newWorld(t, store)
	network := upstreamtest.NewFaulty(t, serve(t, store))
	client, err := kms.New(kms.Options{
		Endpoints:   []kms.Endpoint{{Region: "cn-one", Host: network.Addr(), Scheme: "http"}},
		Credentials: kms.StaticCredential(keyID, keySecret, ""), Retry: kms.Retry{MaxAttempts: 2, Base: time.Millisecond, Cap: time.Millisecond},
		Budget: kms.Budget{PerSecond: 1e5, Burst: 1000}, Breaker: kms.Breaker{Failures: 1 << 20, Pause: time.Millisecond, MaxPause: time.Millisecond},
	})
	must(t, err)
	defer client.Close()
	random := rand.New(rand.NewPCG(2, 3))
	faults := []upstreamtest.Fault{{}, {}, {}, {}, {}, upstreamtest.LostAnswer, upstreamtest.Reset, upstreamtest.Unavailable, upstreamtest.HalfJSON, upstreamtest.InternalFailure}
	failures := 0
	for killed := 0; killed < kills; {
		for range 20 {
			network.Next(faults[random.IntN(len(faults))])
		}
		r, p, ctx := w.start(t, client, 1+random.IntN(14), random.IntN(2) == 0)
		r.Hasten(time.Millisecond, time.Millisecond)
		_, err := r.Rotate(ctx, secret)
		w.check("at the end of a process")
		switch {
		case p.dead:
			killed++
		case err != nil:
			failures++
		}
	}
	network.Set(upstreamtest.Fault{})
	r, _, ctx := w.start(t, client, -1, false)
	r.Hasten(time.Millisecond, time.Millisecond)
	_, err = r.Rotate(ctx, secret)
	must(t, err)
	w.wantBetweenRotations(t)
	t.Logf("%d kills, %v, %d rotations, %d given up because of the network; %d requests; set ran %d times, %d with an effect; %d checks",
		kills, w.kills, len(w.currents)-1, failures, network.Requests(), w.sets, w.effective, w.checks)
}

const keyID, keySecret = "model", "0123456789abcdef0123456789abcdef"

// serve serves m over the KMS API and returns its address.
func serve(t *testing.T, m upstream.Manager) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "secret")
	must(t, writeFile(file, keySecret))
	server, err := kmsserver.New(m, kmsserver.Options{AccessKeys: []kmsserver.AccessKey{{ID: keyID, SecretFile: file, Actions: []string{"*"}, Secrets: []string{"*"}}}, Logger: slog.New(slog.DiscardHandler)})
	must(t, err)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	done := make(chan error, 1)
	go func() { done <- server.Serve(ln, kmsserver.Signed) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_ = server.Shutdown(ctx)
		if err := <-done; err != nil && !errors.Is(err, kmsserver.ErrServerClosed) {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
