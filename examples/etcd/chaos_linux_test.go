package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	sdkerrors "github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/kms"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"secretagent/examples/internal/example"
	"secretagent/upstream/upstreamtest"
)

const (
	prefix      = "/chaos/"
	maxVersions = 100
	ttl         = 5 * time.Second // of the caches
)

// TestChaos lets five agents share three members of etcd, each machine with a network of its own, and writes and reads at
// all of them, through the official SDK, the command line, the endpoint and the files, while machines are killed,
// frozen, cut off and replaced. It goes on for as long as SECRETAGENT_CHAOS says:
//
//	SECRETAGENT_CHAOS=10m go test ./examples/etcd -run TestChaos -timeout 20m -v
//
// What must hold, in rounds that each end with everything healed and quiet:
//
//   - A write that was acknowledged is there, with its value, or was pushed out by maxVersions later ones. One that was
//     refused is not there. Of one whose outcome is unknown, nothing is said.
//   - One version is current, the one before it is the previous one, and a version has one value.
//   - What the KMS API reads is never older than what was read or acknowledged anywhere before.
//   - Nobody sees a version older than before, in the cache, in a file, after a hook or by a long poll of the same agent.
//     While etcd cannot be reached after a crash of the agent, a sealed cache may give one that was replaced in the
//     last second or so before it, marked as stale.
//   - What is told to be fresh is no older than cache.ttl. What a cache holds is served, whatever happens elsewhere.
//   - Every cache, file, hook and long poll of every agent has the last version soon after everything is healed.
//
// SECRETAGENT_CHAOS_SEED repeats the plan of a run, though not its timing.
func TestChaos(t *testing.T) {
	duration, err := time.ParseDuration(os.Getenv("SECRETAGENT_CHAOS"))
	if err != nil {
		t.Skip("set SECRETAGENT_CHAOS to how long it is to go on, such as 10m")
	}
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("SECRETAGENT_CHAOS_SEED"); text != "" {
		_, err := fmt.Sscan(text, &seed)
		example.Must(t, err)
	}
	t.Logf("SECRETAGENT_CHAOS_SEED=%d", seed)
	w := newWorld(t, seed)
	w.begin()
	for end := time.Now().Add(duration); time.Now().Before(end) && !t.Failed(); {
		w.round()
	}
	w.end()
}

// world is everything of the test.
type world struct {
	t       *testing.T
	random  *rand.Rand // of the plan
	cluster *cluster
	agents  []*agent
	secrets []string
	views   []*view
	history *history
	report  *report

	ctx      context.Context
	cancel   context.CancelFunc
	done     sync.WaitGroup
	paused   atomic.Bool  // writers begin nothing
	underWay atomic.Int32 // writes

	mu      sync.Mutex
	calls   []call
	pairs   []pair
	acked   map[string][]string          // :: secret → versions that were acknowledged
	refused map[string]map[string]string // :: secret → version → why it was refused
	filled  bool                         // the quota
}

// pair is what was read of current and previous version at one moment.
type pair struct{ where, secret, current, previous string }

func newWorld(t *testing.T, seed uint64) *world {
	n := newNetwork(t)
	bin := example.Build(t)
	dir := upstreamtest.InMemory(t)
	w := &world{
		t: t, random: rand.New(rand.NewPCG(seed, 0)), cluster: newCluster(t, n, dir),
		report:  &report{t: t, counts: map[string]int{}, times: map[string][]time.Duration{}},
		history: newHistory(), acked: map[string][]string{}, refused: map[string]map[string]string{},
	}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	t.Cleanup(w.cancel)
	for i := range 10 {
		w.secrets = append(w.secrets, fmt.Sprint("s", i))
	}
	out, code := example.Output(t, dir, nil, bin, "keys", "init", filepath.Join(dir, "keyring.json"))
	if code != 0 {
		t.Fatal(out)
	}
	for i := range 5 {
		a := newAgent(t, n, w.cluster, bin, dir, w.secrets, i)
		w.agents = append(w.agents, a)
	}
	return w
}

// begin creates the secrets and starts writers and readers.
func (w *world) begin() {
	w.done.Go(func() { w.history.follow(w.ctx, w.cluster.client) })
	for _, s := range append(w.secrets, "labels") {
		example.Eventually(w.t, "the secret "+s, func() bool {
			request := kms.CreateCreateSecretRequest()
			request.SecretName, request.VersionId, request.SecretData = s, "v0", valueOf("v0")
			_, err := w.agents[0].kms.CreateSecret(request)
			return err == nil
		})
	}
	for _, id := range labelled {
		request := kms.CreatePutSecretValueRequest()
		request.SecretName, request.VersionId, request.SecretData, request.VersionStages = "labels", id, valueOf(id), `["Custom"]`
		_, err := w.agents[0].kms.PutSecretValue(request)
		example.Must(w.t, err)
	}
	w.history.catchUp(w.t, w.cluster.client)
	for _, a := range w.agents {
		w.endpointReader(a)
		w.fileReader(a)
		w.longPoll(a, w.secrets[1])
		w.done.Go(func() { w.batchReader(a) })
		w.done.Go(func() { w.apiReader(a) })
		for i := range 2 {
			w.done.Go(func() { w.sdkWriter(a, i) })
		}
		w.done.Go(func() { w.commandWriter(a) })
		w.done.Go(func() { w.labelMover(a) })
	}
	w.settle(time.Now())
}

func (w *world) view(a *agent, way, secret string) *view {
	v := &view{agent: a.name, sealed: a.sealed, way: way, secret: secret}
	w.views = append(w.views, v)
	return v
}

// endpointReader reads all secrets at the endpoint in turn. What was read once must be answered ever after, as
// long as the agent lives.
func (w *world) endpointReader(a *agent) {
	views := map[string]*view{}
	for _, s := range w.secrets {
		views[s] = w.view(a, "endpoint", s)
	}
	w.done.Go(func() {
		held := map[string]life{} // :: secret → in which it was read
		for i := 0; w.sleep(4 * time.Millisecond); i++ {
			s := w.secrets[i%len(w.secrets)]
			begin, life := time.Now(), a.life()
			status, header, body := a.ask(w.ctx, "/v1/"+s, "")
			if status == 0 || a.life() != life {
				continue // killed
			}
			if status != http.StatusOK {
				if held[s] == life {
					w.report.problem("%s: %s, which is held, is answered with %d: %s", a.name, s, status, body)
				}
				w.report.add("lookups without a value", 1)
				continue
			}
			held[s] = life
			var answer struct{ VersionId, SecretData string }
			if err := json.Unmarshal(body, &answer); err != nil || answer.SecretData != valueOf(answer.VersionId) {
				w.report.problem("%s: version %s of %s has another value", a.name, answer.VersionId, s)
			}
			stale := header.Get("X-Cache") == "stale"
			if stale {
				w.report.add("lookups answered as stale", 1)
			}
			w.report.add("lookups", 1)
			views[s].see(answer.VersionId, begin, life, stale)
		}
	})
}

// batchReader reads the current and the previous version of one moment.
func (w *world) batchReader(a *agent) {
	for i := 0; w.sleep(25 * time.Millisecond); i++ {
		w.batch(a, w.secrets[i%len(w.secrets)])
	}
}

func (w *world) batch(a *agent, s string) {
	_, _, body := a.ask(w.ctx, "/secretsmanager/batch?secretId="+s+"&secretId="+s+":ACSPrevious", "")
	var answer struct {
		SecretValues []struct{ VersionId, SecretData string }
	}
	if json.Unmarshal(body, &answer) != nil || len(answer.SecretValues) != 2 {
		w.report.add("batches without an answer", 1)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pairs = append(w.pairs, pair{a.name + ", endpoint", s, answer.SecretValues[0].VersionId, answer.SecretValues[1].VersionId})
}

// fileReader reads the files of all secrets, and the one that a hook has copied.
func (w *world) fileReader(a *agent) {
	views := map[string]*view{"hooked": w.view(a, "hook", w.secrets[0])}
	for _, s := range w.secrets {
		views[s] = w.view(a, "file", s)
	}
	w.done.Go(func() {
		for w.sleep(20 * time.Millisecond) {
			for name, v := range views {
				begin, life := time.Now(), a.life()
				text, err := os.ReadFile(filepath.Join(a.dir, "files", name))
				if err != nil {
					continue // not there yet
				}
				id := idOf(string(text))
				if id == "" {
					w.report.problem("%s: the file %s is torn: %q", a.name, name, text)
				}
				w.report.add("files read", 1)
				v.see(id, begin, life, false)
			}
		}
	})
}

func (w *world) longPoll(a *agent, s string) {
	v := w.view(a, "long poll", s)
	w.done.Go(func() {
		etag := ""
		for w.sleep(time.Millisecond) {
			begin, life := time.Now(), a.life()
			path := "/v1/" + s
			if etag != "" {
				path += "?wait=20s"
			}
			status, header, body := a.ask(w.ctx, path, etag)
			var answer struct{ VersionId string }
			if a.life() != life || status != http.StatusOK || json.Unmarshal(body, &answer) != nil {
				if status != http.StatusNotModified {
					etag = ""
				}
				continue
			}
			etag = header.Get("ETag")
			w.report.add("long polls answered", 1)
			v.see(answer.VersionId, begin, life, header.Get("X-Cache") == "stale")
		}
	})
}

// apiReader reads values and versions by the KMS API.
func (w *world) apiReader(a *agent) {
	for i := 0; w.sleep(40 * time.Millisecond); i++ {
		s := w.secrets[rand.IntN(len(w.secrets))]
		switch i % 3 {
		case 0:
			request := kms.CreateListSecretVersionIdsRequest()
			request.SecretName, request.IncludeDeprecated, request.PageSize = s, "true", requests.NewInteger(maxVersions)
			if i%2 == 0 {
				request.SecretName = "labels"
			}
			answer, err := a.kms.ListSecretVersionIds(request)
			if err != nil {
				w.report.add("reads of the API without an answer", 1)
				continue
			}
			w.checkLabels(a, request.SecretName, answer)
		default:
			request := kms.CreateGetSecretValueRequest()
			request.SecretName = s
			begin := time.Now()
			answer, err := a.kms.GetSecretValue(request)
			if err != nil {
				w.report.add("reads of the API without an answer", 1)
				continue
			}
			if answer.SecretData != valueOf(answer.VersionId) {
				w.report.problem("%s, API: version %s of %s has another value", a.name, answer.VersionId, s)
			}
			w.called(call{a.name, s, answer.VersionId, begin, time.Now()})
		}
	}
}

func (w *world) called(c call) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, c)
}

func (w *world) checkLabels(a *agent, secret string, answer *kms.ListSecretVersionIdsResponse) {
	on := map[string][]string{}
	for _, v := range answer.VersionIds.VersionId {
		for _, stage := range v.VersionStages.VersionStage {
			on[stage] = append(on[stage], v.VersionId)
		}
	}
	for stage, ids := range on {
		if len(ids) > 1 {
			w.report.problem("%s, API: %s of %s is on %d versions", a.name, stage, secret, len(ids))
		}
	}
	if len(on["ACSCurrent"]) != 1 || len(on["ACSPrevious"]) == 1 && on["ACSPrevious"][0] == on["ACSCurrent"][0] || secret == "labels" && len(on["Custom"]) != 1 {
		w.report.problem("%s, API: the labels of %s are %v", a.name, secret, on)
		return
	}
	w.report.add("labels checked, API", 1)
	if secret != "labels" && len(on["ACSPrevious"]) == 1 {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.pairs = append(w.pairs, pair{a.name + ", API", secret, on["ACSCurrent"][0], on["ACSPrevious"][0]})
	}
}

// outcome of a write.
type outcome int

const (
	done outcome = iota
	refused
	unknown
)

// outcomeOf says what an error of the SDK means.
func (w *world) outcomeOf(err error) outcome {
	if err == nil {
		return done
	}
	text := err.Error()
	if strings.Contains(text, "NOSPACE") {
		w.report.add("writes refused: NOSPACE", 1)
	}
	var e sdkerrors.Error
	switch isServer := errors.As(err, &e) && e.HttpStatus() != 0; {
	case strings.Contains(text, "unknown"):
		return unknown
	case isServer, strings.Contains(text, "dial"): // dial tcp: the agent is not there
		return refused
	}
	return unknown // killed in between, or no answer in time
}

// sdkWriter puts versions of its own by the official SDK. An outcome that is unknown it leaves as it is, or repeats
// the request until it is known, as an application would.
func (w *world) sdkWriter(a *agent, number int) {
	for n := 0; w.pause(60, 240); n++ {
		s, id := w.secrets[1+rand.IntN(len(w.secrets)-1)], fmt.Sprintf("%s-%d-%d", a.name, number, n)
		w.write(a, s, id, "SDK", func() (outcome, string) {
			request := kms.CreatePutSecretValueRequest()
			request.SecretName, request.VersionId, request.SecretData = s, id, valueOf(id)
			_, err := a.kms.PutSecretValue(request)
			if e := sdkerrors.Error(nil); errors.As(err, &e) && e.HttpStatus() != http.StatusServiceUnavailable && e.HttpStatus() != 0 {
				w.report.problem("%s: a write is refused: %v", a.name, err)
			}
			return w.outcomeOf(err), fmt.Sprint(err)
		})
		if n%8 == 0 && w.mayWrite() {
			w.rewrite(a)
			w.underWay.Add(-1)
		}
	}
}

// rewrite tries to give a version another value.
func (w *world) rewrite(a *agent) {
	id := w.history.last(w.secrets[0]).id
	request := kms.CreatePutSecretValueRequest()
	request.SecretName, request.VersionId, request.SecretData = w.secrets[0], id, valueOf("another")
	_, err := a.kms.PutSecretValue(request)
	var e sdkerrors.Error
	switch {
	case err == nil:
		w.report.problem("%s: version %s of %s was given another value", a.name, id, w.secrets[0])
	case errors.As(err, &e) && e.ErrorCode() == "Rejected.ResourceExist":
		w.report.add("other values of a version refused", 1)
	}
}

// commandWriter puts versions by the command line, of the secret that changes seldom, too.
func (w *world) commandWriter(a *agent) {
	for n := 0; w.pause(1000, 2500); n++ {
		s, id := w.secrets[rand.IntN(2)], fmt.Sprintf("%s-c-%d", a.name, n)
		w.write(a, s, id, "CLI", func() (outcome, string) {
			code, out := a.command(valueOf(id), "secret", "put", s, "--version-id", id, "--data-file", "-")
			switch {
			case code == 0:
				return done, ""
			case strings.Contains(out, "unknown"):
				return unknown, ""
			case code != 5:
				w.report.problem("%s: secret put ends with %d: %s", a.name, code, out)
			}
			w.report.add("CLI: "+errorLine(out), 1)
			return refused, out
		})
	}
}

// errorLine returns what a command says last.
func errorLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	line := regexp.MustCompile(`[0-9a-f-]{20,}|a[0-9]-c-[0-9]+|\bs[0-9]\b|/dev/\S+`).ReplaceAllString(lines[len(lines)-1], "…")
	return line[:min(len(line), 230)]
}

// write makes a write with try, and repeats some whose outcome is unknown.
func (w *world) write(a *agent, secret, id, by string, try func() (outcome, string)) {
	if !w.mayWrite() {
		return
	}
	defer w.underWay.Add(-1)
	repeat := rand.IntN(2) == 0
	doubt, begin := false, time.Now() // an attempt before the one that is acknowledged may have done it
	for {
		got, why := try()
		w.report.add(by+": "+[]string{"writes acknowledged", "writes refused", "writes of unknown outcome"}[got], 1)
		switch {
		case got == done:
			w.called(call{a.name, secret, id, begin, time.Now()})
			w.mu.Lock()
			w.acked[secret] = append(w.acked[secret], id)
			w.mu.Unlock()
			if doubt {
				w.report.add("unknown outcomes that a repetition has settled", 1)
			}
			return
		case got == refused && !doubt:
			w.mu.Lock()
			if w.refused[secret] == nil {
				w.refused[secret] = map[string]string{}
			}
			w.refused[secret][id] = why
			w.mu.Unlock()
			return
		}
		doubt = true
		if !repeat || !w.sleep(100*time.Millisecond) || w.paused.Load() {
			return
		}
	}
}

// labelled are versions of the secret whose labels move.
var labelled = []string{"v1", "v2", "v3"}

// labelMover moves labels of a secret to and fro.
func (w *world) labelMover(a *agent) {
	for w.pause(300, 900) {
		if !w.mayWrite() {
			continue
		}
		request := kms.CreateUpdateSecretVersionStageRequest()
		request.SecretName, request.MoveToVersion = "labels", labelled[rand.IntN(len(labelled))]
		if request.VersionStage = "ACSCurrent"; rand.IntN(2) == 0 {
			list := kms.CreateListSecretVersionIdsRequest()
			list.SecretName, list.IncludeDeprecated = "labels", "true"
			if answer, err := a.kms.ListSecretVersionIds(list); err == nil {
				for _, v := range answer.VersionIds.VersionId {
					if slices.Contains(v.VersionStages.VersionStage, "Custom") {
						request.VersionStage, request.RemoveFromVersion = "Custom", v.VersionId
					}
				}
			}
		}
		if _, err := a.kms.UpdateSecretVersionStage(request); err == nil {
			w.report.add("labels moved", 1)
		}
		w.underWay.Add(-1)
	}
}

func (w *world) sleep(d time.Duration) bool {
	select {
	case <-w.ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// pause sleeps for some milliseconds.
func (w *world) pause(from, to int) bool {
	return w.sleep(time.Duration(from+rand.IntN(to-from)) * time.Millisecond)
}

// mayWrite begins a write, unless there are to be none.
func (w *world) mayWrite() bool {
	w.underWay.Add(1)
	if w.paused.Load() {
		w.underWay.Add(-1)
		return false
	}
	return true
}

// harm is done to one machine, and healed after a while.
type harm struct {
	what       string
	member     bool
	begin, end time.Duration // in the round
	do, heal   func()
}

// plan makes the harms of a round.
func (w *world) plan() (harms []harm) {
	add := func(what string, do, heal func()) {
		begin := time.Duration(w.random.IntN(2500)) * time.Millisecond
		length := 200 + w.random.IntN(5000)
		if w.random.IntN(6) == 0 {
			length += 10000 // longer than it takes a watch to be given up
		}
		harms = append(harms, harm{what, strings.Contains(what, " m"), begin, begin + time.Duration(length)*time.Millisecond, do, heal})
	}
	isolated := false
	one := func(m *machine) {
		switch kind := w.random.IntN(6); kind {
		case 5: // it starts while it is cut off
			add("kill "+m.name+" and cut it", func() { m.kill(); m.link(cuts[0].cut); m.run() }, func() { m.link(cuts[0].heal) })
		case 0:
			add("kill "+m.name, m.kill, m.run)
		case 1:
			add("stop "+m.name, func() { stop(m) }, func() { cont(m) })
		default:
			cut := cuts[kind-2]
			isolated = isolated || cut.name == "isolated"
			add("cut "+m.name+", "+cut.name, func() { m.link(cut.cut) }, func() { m.link(cut.heal) })
		}
	}
	for _, i := range w.random.Perm(len(w.cluster.members))[:[]int{0, 1, 1, 1, 2, 3}[w.random.IntN(6)]] {
		one(w.cluster.members[i].machine)
	}
	agents := w.random.Perm(len(w.agents))
	for _, i := range agents[:w.random.IntN(4)] {
		one(w.agents[i].machine)
	}
	if isolated { // from somebody
		m, cut := w.agents[agents[4]].machine, cuts[2]
		add("cut "+m.name+", isolated", func() { m.link(cut.cut) }, func() { m.link(cut.heal) })
	}
	return harms
}

// round does harm, heals, and checks.
func (w *world) round() {
	harms := w.plan()
	w.report.add("rounds", 1)
	type step struct {
		at time.Duration
		do func()
	}
	var steps []step
	var names []string
	special := ""
	switch n := w.random.IntN(20); {
	case n < 4:
		special = "compaction in the middle"
		steps = append(steps, step{3 * time.Second, w.compact})
	case n < 6:
		special = "defragmentation"
		steps = append(steps, step{2 * time.Second, w.defragment})
	case n < 7:
		special = "a member is emptied" // the others must be there, or it does not start
		harms = slices.DeleteFunc(harms, func(h harm) bool { return h.member })
		steps = append(steps, step{0, func() { w.cluster.empty(w.cluster.members[w.random.IntN(3)]) }})
	case n < 9:
		special = "NOSPACE"
		steps = append(steps, step{0, w.fill})
	case n < 11:
		special = "keys rotate"
		steps = append(steps, step{0, w.rotate})
	}
	for _, h := range harms {
		names = append(names, fmt.Sprintf("%s (%v to %v)", h.what, h.begin, h.end))
		w.report.add("harm: "+strings.NewReplacer("m0", "member", "m1", "member", "m2", "member", "a0", "agent", "a1", "agent", "a2", "agent", "a3", "agent", "a4", "agent").Replace(h.what), 1)
		steps = append(steps, step{h.begin, h.do}, step{h.end, h.heal})
	}
	if special != "" {
		names = append(names, special)
		w.report.add("harm: "+special, 1)
	}
	w.t.Logf("%s round: %s", time.Now().Format("15:04:05"), strings.Join(names, "; "))
	slices.SortStableFunc(steps, func(a, b step) int { return int(a.at - b.at) })
	begin := time.Now()
	for i, s := range steps {
		time.Sleep(time.Until(begin.Add(s.at)))
		if i == len(steps)-1 {
			w.paused.Store(true) // so that what is behind at the last healing can be told
		}
		s.do()
	}
	w.release()
	w.settle(time.Now())
}

// settle waits until every view has the last version, notes how long that took, and checks what was seen.
func (w *world) settle(healed time.Time) {
	w.paused.Store(true)
	clusterUp := w.until("all members are healthy", func() bool {
		if w.cluster.healthy() {
			return true
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		// A member that was behind may tell of a quota that was used up in the meantime.
		if alarms, err := w.cluster.client.AlarmList(ctx); err == nil && len(alarms.Alarms) > 0 {
			w.filled = true
			w.release()
		}
		return false
	})
	up := map[string]time.Time{} // when the watch of an agent was up, the members being ready
	for _, a := range w.agents {
		up[a.name] = w.until("the watch of "+a.name, a.watchIsUp)
	}
	w.compact()
	w.defragment() // or the quota is used up by what was compacted
	w.until("all writers have their answers", func() bool { return w.underWay.Load() == 0 })
	quiet := time.Now()
	w.history.catchUp(w.t, w.cluster.client)
	type late struct {
		v    *view
		took time.Duration
	}
	var slow []late
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		behind := slices.IndexFunc(w.views, func(v *view) bool { id, _ := v.now(); return id != w.history.last(v.secret).id })
		if behind < 0 {
			break
		}
		if time.Now().After(deadline) {
			for _, v := range w.views {
				if id, since := v.now(); id != w.history.last(v.secret).id {
					w.report.problem("%s, %s: %s is at %s since %v, not at %s", v.agent, v.way, v.secret, id, since.Format("15:04:05.000"), w.history.last(v.secret).id)
				}
			}
			break
		}
	}
	for _, v := range w.views {
		last := w.history.last(v.secret)
		_, since := v.now()
		if since.Before(healed) {
			continue // it was there before
		}
		from := healed
		if last.at.After(healed) {
			from = last.at
		}
		took := since.Sub(from)
		w.report.took("since the last healing: "+v.way, took)
		if ready := latest(from, clusterUp, up[v.agent]); true {
			w.report.took("since members and watch were there: "+v.way, since.Sub(ready))
		}
		if took > time.Second {
			slow = append(slow, late{v, took})
		}
	}
	for _, a := range w.agents {
		w.report.took("until the watch was up", up[a.name].Sub(healed))
	}
	w.report.took("until the members were ready", clusterUp.Sub(healed))
	w.report.took("until the last write had an answer", quiet.Sub(healed))
	if len(slow) > 0 {
		slices.SortFunc(slow, func(a, b late) int { return int(b.took - a.took) })
		var all []string
		for _, l := range slow[:min(len(slow), 4)] {
			all = append(all, fmt.Sprintf("%s %s %s %v", l.v.agent, l.v.way, l.v.secret, l.took.Round(time.Millisecond)))
		}
		w.t.Logf("slow: %d: %s; members %v, quiet %v", len(slow), strings.Join(all, ", "), clusterUp.Sub(healed).Round(time.Millisecond), quiet.Sub(healed).Round(time.Millisecond))
	}
	w.check()
	w.paused.Store(false)
}

func latest(times ...time.Time) time.Time {
	return slices.MaxFunc(times, func(a, b time.Time) int { return a.Compare(b) })
}

// check holds what was read and answered against the history.
func (w *world) check() {
	seen := make([][]sight, len(w.views))
	for i, v := range w.views {
		seen[i] = v.take()
	}
	w.mu.Lock()
	calls, pairs := w.calls, w.pairs
	w.calls, w.pairs = nil, nil
	w.mu.Unlock()
	w.history.catchUp(w.t, w.cluster.client) // with what an agent went on with that its client had given up
	for i, v := range w.views {
		v.check(w.report, w.history, seen[i])
	}
	checkCalls(w.report, w.history, calls)
	h := w.history
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range pairs {
		current, known := h.places[p.secret][p.current]
		previous, knew := h.places[p.secret][p.previous]
		if !known || !knew || current != previous+1 {
			w.report.problem("%s: of %s, %s is current and %s previous, at %d and %d", p.where, p.secret, p.current, p.previous, current, previous)
		}
	}
	w.report.add("pairs of current and previous checked", len(pairs))
	if h.gap {
		w.t.Fatal("etcd has compacted what this test had not read")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for s, versions := range w.refused {
		for id, why := range versions {
			if _, known := h.places[s][id]; known {
				w.report.problem("version %s of %s is there, though it was refused: %s", id, s, why)
			}
		}
	}
	for s, ids := range w.acked {
		for _, id := range ids {
			if _, known := h.places[s][id]; !known {
				w.report.problem("version %s of %s was acknowledged, and is lost", id, s)
			}
		}
	}
}

// end checks what there is at the end: the last versions of each secret, with their values, at each agent.
func (w *world) end() {
	w.paused.Store(true)
	w.history.catchUp(w.t, w.cluster.client)
	for i, s := range w.secrets {
		a := w.agents[i%len(w.agents)]
		w.history.mu.Lock()
		commits, places := w.history.commits[s], w.history.places[s]
		w.history.mu.Unlock()
		kept := commits[max(0, len(commits)-maxVersions):]
		request := kms.CreateListSecretVersionIdsRequest()
		request.SecretName, request.IncludeDeprecated, request.PageSize = s, "true", requests.NewInteger(maxVersions)
		answer, err := a.kms.ListSecretVersionIds(request)
		if err != nil {
			w.report.problem("%s: the versions of %s: %v", a.name, s, err)
			continue
		}
		there := map[string]bool{}
		for _, v := range answer.VersionIds.VersionId {
			there[v.VersionId] = true
		}
		if len(there) != len(kept) {
			w.report.problem("%s has %d versions, not %d", s, len(there), len(kept))
		}
		for _, c := range kept {
			request := kms.CreateGetSecretValueRequest()
			request.SecretName, request.VersionId = s, c.id
			if answer, err := a.kms.GetSecretValue(request); err != nil || !there[c.id] || answer.SecretData != valueOf(c.id) {
				w.report.problem("version %s of %s is listed: %t; its value: %v", c.id, s, there[c.id], err)
			}
			w.report.add("versions there at the end, with their values", 1)
		}
		for _, id := range w.acked[s] {
			if place := places[id]; place < len(commits)-maxVersions {
				w.report.add("acknowledged, pushed out by later ones", 1)
			} else {
				w.report.add("acknowledged, and there at the end", 1)
			}
		}
	}
	w.report.add("versions that were put twice", w.history.again)
	w.cancel()
	w.done.Wait()
	for _, a := range w.agents {
		w.report.add("old answers of etcd that agents have refused", strings.Count(a.log.String(), "answers with what was there before"))
	}
	w.report.print()
}

// compact has etcd forget all that the history has been told: who was cut off must read everything anew.
func (w *world) compact() {
	w.history.mu.Lock()
	rev := w.history.rev
	w.history.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if _, err := w.cluster.client.Compact(ctx, rev); err == nil {
		w.report.add("compactions", 1)
	}
}

func (w *world) defragment() {
	for _, url := range w.cluster.urls() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		if _, err := w.cluster.client.Defragment(ctx, url); err == nil {
			w.report.add("defragmentations", 1)
		}
		cancel()
	}
}

// fill uses up the quota of etcd, until release.
func (w *world) fill() {
	filler := strings.Repeat("x", 1<<20)
	for i := range 2 * quota >> 20 {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_, err := w.cluster.client.Put(ctx, fmt.Sprint("filler/", i), filler)
		cancel()
		w.filled = true
		if errors.Is(err, rpctypes.ErrNoSpace) {
			w.report.add("quotas used up", 1)
			return
		}
	}
}

// release makes room at etcd and takes the alarm back, where the quota was used up.
func (w *world) release() {
	if !w.filled {
		return
	}
	w.filled = false
	client := w.cluster.client
	w.until("NOSPACE is over", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_, err := client.Delete(ctx, "filler/", clientv3.WithPrefix())
		if err != nil {
			return false
		}
		time.Sleep(50 * time.Millisecond) // the history is to be told of the deletion
		w.compact()
		w.defragment()
		if _, err = client.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err == nil {
			_, err = client.Put(ctx, "marker", "")
		}
		return err == nil
	})
}

// until waits until done, and returns when that was.
func (w *world) until(what string, done func() bool) time.Time {
	for begin := time.Now(); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Since(begin) > example.Patience {
			w.t.Fatalf("waited %v until %s", example.Patience, what)
		}
	}
	return time.Now()
}

func (w *world) rotate() {
	a := w.agents[w.random.IntN(len(w.agents))]
	code, out := a.command("", "keys", "rotate")
	w.report.add(fmt.Sprintf("keys rotate: exit code %d: %s", code, errorLine(out)), 1)
}
