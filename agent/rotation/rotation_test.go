package rotation_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"secretagent/agent/rotation"
	"secretagent/upstream"
	"secretagent/upstream/upstreamtest"
)

// rotator makes one that lives, for a rotation that change has changed.
func (w *world) rotator(change func(*rotation.Rotation)) *rotation.Rotator {
	w.t.Helper()
	one := w.rotation()
	if change != nil {
		change(&one)
	}
	r, err := rotation.New(rotation.Options{
		Rotations: []rotation.Rotation{one}, Upstream: func() rotation.Upstream { return w.store }, Run: w.run,
	})
	must(w.t, err)
	return r
}

// runFor runs a rotator for some time.
func runFor(t *testing.T, r *rotation.Rotator, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	must(t, r.Run(ctx))
}

func inBubble(t *testing.T, fn func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { fn(t, newWorld(t, upstreamtest.NewFake())) })
}

func TestRotateByHand(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		r := w.rotator(nil)
		plan, err := r.Plan(t.Context(), secret)
		must(t, err)
		if got := plan.Steps; len(got) != 5 || got[0] != rotation.Make || plan.Commands[rotation.Set] != "set" || w.sets != 0 {
			t.Errorf("the plan is %+v", plan)
		}
		result, err := r.Rotate(t.Context(), secret)
		must(t, err)
		ids, labels := w.versions()
		if result.From != "v1" || result.To != ids[1] || result.Followed || labels[upstream.ACSCurrent] != ids[1] {
			t.Errorf("%+v, %v", result, labels)
		}
		v, err := w.store.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: secret})
		must(t, err)
		text := string(v.SecretData.Reveal())
		password := w.login(text).Password
		quoted := text[strings.Index(text, `"Password":`)+11 : strings.LastIndex(text, `,"port"`)]
		if want := `{"host":"db","Username":"b","Password":` + quoted + `,"port":5432}`; text != want || len(password) != 32 {
			t.Errorf("the new value is %s", text)
		}
		if _, err := r.Rotate(t.Context(), "no/such"); !errors.Is(err, upstream.ErrNotFound) {
			t.Errorf("a secret without a rotation: %v", err)
		}
	})
}

func TestAStepThatFailsLeavesTheVersionPending(t *testing.T) {
	for _, step := range []string{"set", "test"} {
		inBubble(t, func(t *testing.T, w *world) {
			broken := true
			w.fail = func(s string) error {
				if broken && s == step {
					return errors.New("the target is not there")
				}
				return nil
			}
			r := w.rotator(nil)
			runFor(t, r, 72*time.Hour)
			ids, labels := w.versions()
			st := r.Status()[0]
			if len(ids) != 2 || labels[upstream.ACSCurrent] != "v1" || labels["Pending"] != ids[1] {
				t.Fatalf("versions %v, labels %v", ids, labels)
			}
			if st.State != rotation.Failed || string(st.Step) != step || st.Attempts != 8 || st.Error != "the target is not there" || st.Pending != ids[1] {
				t.Errorf("status %+v", st)
			}
			w.check("after a failure")

			// By hand it is gone on with.
			_, err := w.rotator(nil).Rotate(t.Context(), secret)
			if failure, ok := errors.AsType[*rotation.Error](err); !ok || string(failure.Step) != step || failure.Attempts != 8 {
				t.Errorf("by hand: %v", err)
			}
			if step == "test" {
				if _, err := r.Force(t.Context(), secret, rotation.Test); err == nil {
					t.Error("a test was forced that fails")
				}
			}
			broken = false
			for _, s := range []rotation.Step{rotation.Set, rotation.Test, rotation.Finish} {
				result, err := r.Force(t.Context(), secret, s)
				must(t, err)
				if result.From != "v1" || result.To != ids[1] {
					t.Errorf("%s: %+v", s, result)
				}
			}
			w.wantBetweenRotations(t)
			if _, err := r.Force(t.Context(), secret, rotation.Finish); !errors.Is(err, upstream.ErrNotFound) {
				t.Errorf("forced without a pending version: %v", err)
			}
		})
	}
}

func TestAbandonWaitsForTheNextTime(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.fail = func(string) error { return errors.New("no") }
		runFor(t, w.rotator(nil), 30*time.Hour)
		w.fail = nil
		r := w.rotator(nil)
		id, err := r.Abandon(t.Context(), secret)
		must(t, err)
		if ids, labels := w.versions(); id != ids[1] || len(labels) != 1 {
			t.Errorf("%s was dropped, labels %v", id, labels)
		}
		if id, err := r.Abandon(t.Context(), secret); id != "" || err != nil {
			t.Errorf("again: %q %v", id, err)
		}
		runFor(t, r, 17*time.Hour)
		if ids, _ := w.versions(); len(ids) != 2 {
			t.Errorf("a new attempt began at once")
		}
		runFor(t, r, 8*time.Hour)
		if ids, labels := w.versions(); len(ids) != 3 || labels[upstream.ACSCurrent] != ids[2] {
			t.Errorf("no new attempt: %v, %v", ids, labels)
		}
	})
}

// Whoever retries finds that its version was dropped, and does not make another one.
func TestAbandonEndsWhatRuns(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.fail = func(string) error { return errors.New("no") }
		failed := make(chan error, 1)
		go func() { _, err := w.rotator(nil).Rotate(t.Context(), secret); failed <- err }()
		time.Sleep(7 * time.Second)
		_, err := w.rotator(nil).Abandon(t.Context(), secret)
		must(t, err)
		if err := <-failed; err == nil || !strings.Contains(err.Error(), "dropped") {
			t.Errorf("%v", err)
		}
		if ids, labels := w.versions(); len(ids) != 2 || labels[upstream.ACSCurrent] != "v1" {
			t.Errorf("%v %v", ids, labels)
		}
	})
}

// A value that a person puts while a version is pending makes that worthless.
func TestAStalePendingVersionIsDropped(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.fail = func(string) error { return errors.New("no") }
		runFor(t, w.rotator(nil), 30*time.Hour)
		w.fail = nil
		w.passwords["b"] = "by hand"
		_, err := w.store.PutSecretValue(t.Context(), upstream.PutSecretValueInput{
			SecretName: secret, VersionID: "hand", SecretData: upstream.NewSecretData([]byte(`{"Username":"b","Password":"by hand"}`)),
		})
		must(t, err)
		runFor(t, w.rotator(nil), time.Hour)
		if _, labels := w.versions(); labels[upstream.ACSCurrent] != "hand" || labels["Pending"] != "" || w.sets != 0 {
			t.Errorf("labels %v, %d sets", labels, w.sets)
		}
		w.check("after a value by hand")
	})
}

// A version that a person has put under the pending label is taken through the other steps.
func TestAPendingVersionByHandIsTakenUp(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		put := func(id upstream.VersionID, user string) {
			_, err := w.store.PutSecretValue(t.Context(), upstream.PutSecretValueInput{
				SecretName: secret, VersionID: id, SecretData: upstream.NewSecretData([]byte(`{"Username":"` + user + `","Password":"by hand"}`)),
				VersionStages: []upstream.VersionStage{"Pending"},
			})
			must(t, err)
		}
		put("wrong", "a") // the account that is in use
		if _, err := w.rotator(nil).Rotate(t.Context(), secret); err == nil || !strings.Contains(err.Error(), "in use") || w.sets != 0 {
			t.Errorf("%v, %d sets", err, w.sets)
		}
		put("hand", "b")
		result, err := w.rotator(nil).Rotate(t.Context(), secret)
		must(t, err)
		if result.To != "hand" || w.sets != 1 || w.tests != 1 {
			t.Errorf("%+v, %d sets", result, w.sets)
		}
		w.check("after")
	})
}

// Rolling back does not begin a rotation at once.
func TestARollbackIsLeftAlone(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		runFor(t, w.rotator(nil), 30*time.Hour)
		must(t, w.store.UpdateSecretVersionStage(t.Context(), upstream.UpdateSecretVersionStageInput{SecretName: secret, VersionStage: upstream.ACSCurrent, MoveToVersion: "v1"}))
		runFor(t, w.rotator(nil), 15*time.Hour)
		if ids, labels := w.versions(); len(ids) != 2 || labels[upstream.ACSCurrent] != "v1" {
			t.Errorf("%v %v", ids, labels)
		}
		runFor(t, w.rotator(nil), 8*time.Hour)
		if ids, labels := w.versions(); len(ids) != 3 || labels[upstream.ACSCurrent] != ids[2] {
			t.Errorf("%v %v", ids, labels)
		}
	})
}

// An upstream that is away for hours is waited for.
func TestAnOutageIsWaitedFor(t *testing.T) {
	for _, op := range []string{"ListSecretVersionIDs", "GetSecretValue", "PutSecretValue", "UpdateSecretVersionStage"} {
		synctest.Test(t, func(t *testing.T) {
			fake := upstreamtest.NewFake()
			w := newWorld(t, fake)
			fake.Fail(op, upstream.ErrUnavailable)
			var ended []rotation.Outcome
			one := w.rotation()
			one.Every, one.Jitter = 24*time.Hour, 0
			r, err := rotation.New(rotation.Options{
				Rotations: []rotation.Rotation{one}, Upstream: func() rotation.Upstream { return fake }, Run: w.run,
				Observe: func(e rotation.Event) { ended = append(ended, e.Outcome) },
			})
			must(t, err)
			time.AfterFunc(30*time.Hour, func() { fake.Fail(op, nil) })
			runFor(t, r, 31*time.Hour)
			if _, labels := w.versions(); labels[upstream.ACSCurrent] == "v1" || labels["Pending"] != "" {
				t.Errorf("%s: labels %v, %+v", op, labels, r.Status()[0])
			}
			if n := len(ended); ended[n-1] != rotation.OutcomeRotated {
				t.Errorf("%s: %v", op, ended)
			}
		})
	}
}

func TestWithoutSetAndTestOnePutIsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := upstreamtest.NewFake()
		w := newWorld(t, fake)
		fake.MustCreate(t, "app/token", "v1", "first")
		done := make(chan struct{})
		for range 10 {
			r, err := rotation.New(rotation.Options{
				Rotations: []rotation.Rotation{{
					Secret: "app/token", Every: time.Hour,
					New: rotation.NewValue{Command: &rotation.Command{Argv: []string{"new"}}},
				}},
				Upstream: func() rotation.Upstream { return fake },
				Run: func(_ context.Context, e rotation.Execution) ([]byte, error) {
					return append(slices.Clone(e.Input), "+1\n"...), nil
				},
			})
			must(t, err)
			go func() { runFor(t, r, 150*time.Minute); done <- struct{}{} }()
		}
		for range 10 {
			<-done
		}
		v, err := w.store.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: "app/token"})
		must(t, err)
		if got := string(v.SecretData.Reveal()); got != "first+1+1" {
			t.Errorf("after two hours it is %s", got)
		}
		if n := fake.Calls("UpdateSecretVersionStage"); n != 0 {
			t.Errorf("labels were moved %d times", n)
		}
	})
}

// A binary secret stays one: its command gets and prints base64.
func TestABinarySecretStaysOne(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		_, err := w.store.PutSecretValue(t.Context(), upstream.PutSecretValueInput{
			SecretName: secret, VersionID: "key", SecretData: upstream.NewSecretData([]byte("AAEC")), SecretDataType: upstream.DataTypeBinary,
		})
		must(t, err)
		printed := "no base64"
		r, err := rotation.New(rotation.Options{
			Rotations: []rotation.Rotation{{Secret: secret, New: rotation.NewValue{Command: &rotation.Command{Argv: []string{"new"}}}, MaxAttempts: 1}},
			Upstream:  func() rotation.Upstream { return w.store },
			Run: func(_ context.Context, e rotation.Execution) ([]byte, error) {
				if string(e.Input) != "AAEC" {
					t.Errorf("the command gets %s", e.Input)
				}
				return []byte(printed + "\n"), nil
			},
		})
		must(t, err)
		if _, err := r.Rotate(t.Context(), secret); err == nil || !strings.Contains(err.Error(), "base64") {
			t.Errorf("text for a binary secret: %v", err)
		}
		printed = "AwQF"
		_, err = r.Rotate(t.Context(), secret)
		must(t, err)
		v, err := w.store.GetSecretValue(t.Context(), upstream.SecretRef{SecretName: secret})
		must(t, err)
		if got := string(v.SecretData.Reveal()); got != printed || v.SecretDataType != upstream.DataTypeBinary {
			t.Errorf("it is %s, %s", got, v.SecretDataType)
		}
	})
}

func TestOptionsAreChecked(t *testing.T) {
	password := func(length int) *rotation.Password {
		return &rotation.Password{Field: "password", RandomPasswordInput: upstream.RandomPasswordInput{PasswordLength: length}}
	}
	valid := func() rotation.Rotation {
		return rotation.Rotation{Secret: secret, Every: time.Hour, New: rotation.NewValue{Password: password(32)}}
	}
	for want, change := range map[string]func(r *rotation.Rotation){
		"rotations[0].pendingStage: ACSPrevious: must be a label of its own: this one is built in":    func(r *rotation.Rotation) { r.PendingStage = upstream.ACSPrevious },
		"rotations[0].jitter: 2h0m0s: must not be longer than every, 1h0m0s":                          func(r *rotation.Rotation) { r.Jitter = 2 * time.Hour },
		"rotations[0].new: must have password, pair or command":                                       func(r *rotation.Rotation) { r.New.Password = nil },
		"rotations[0].new.command: makes the whole value: leave password and pair away":               func(r *rotation.Rotation) { r.New.Command = &rotation.Command{Argv: []string{"new"}} },
		"rotations[0].new.password: PasswordLength: 7 is not in the range 8 to 128":                   func(r *rotation.Rotation) { r.New.Password = password(7) },
		"rotations[0].new.pair.users: must be two accounts or more, each another":                     func(r *rotation.Rotation) { r.New.Pair = &rotation.Pair{Field: "user", Users: []string{"a", "a"}} },
		"rotations[0].new.pair.field: must name the field that holds the account":                     func(r *rotation.Rotation) { r.New.Pair = &rotation.Pair{Users: []string{"a", "b"}} },
		"rotations[0].new.password.field: password: must name another field than that of the account": func(r *rotation.Rotation) { r.New.Pair = &rotation.Pair{Field: "password", Users: []string{"a", "b"}} },
		"rotations[0].window.from: 2am: must be a time of day such as \"02:00\"":                      func(r *rotation.Rotation) { r.Window = &rotation.Window{From: "2am", To: "04:00"} },
		"rotations[0].window.to: 04:00: must be another time than from: the window would be empty":    func(r *rotation.Rotation) { r.Window = &rotation.Window{From: "04:00", To: "04:00"} },
		"rotations[0].window.to: 4:00: must be another time than from: the window would be empty":     func(r *rotation.Rotation) { r.Window = &rotation.Window{From: "04:00", To: "4:00"} },
		"rotations[0].window: belongs to every: a rotation by hand does not wait for it":              func(r *rotation.Rotation) { r.Every, r.Window = 0, &rotation.Window{From: "02:00", To: "04:00"} },
		"rotations[0].window.zone: Mars/Base: is no time zone that is known here: use a name such as UTC or Asia/Shanghai, and install tzdata where there is none": func(r *rotation.Rotation) {
			r.Window = &rotation.Window{From: "02:00", To: "04:00", Zone: "Mars/Base"}
		},
	} {
		r := valid()
		change(&r)
		if _, err := rotation.New(rotation.Options{Rotations: []rotation.Rotation{r}}); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
	err := rotation.Options{Rotations: []rotation.Rotation{valid(), valid()}}.Validate()
	if err == nil || err.Error() != "rotations[1].secret: app/db: is rotated by rotations[0] already: keep one" {
		t.Error(err)
	}
	must(t, rotation.Options{Rotations: []rotation.Rotation{valid()}}.Validate())
}

// What takes over goes on with what was begun, and can be looked at meanwhile.
func TestContinue(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.fail = func(string) error { return errors.New("no") }
		old := w.rotator(func(r *rotation.Rotation) { r.MaxAttempts = 1 })
		runFor(t, old, 26*time.Hour)
		w.fail = nil
		next := w.rotator(nil)
		done := make(chan struct{})
		go func() { _ = next.Status(); close(done) }()
		next.Continue(old)
		<-done
		if st := next.Status()[0]; st.State != rotation.Failed || st.Pending == "" {
			t.Errorf("it knows %+v", st)
		}
		runFor(t, next, 10*time.Second) // less than what is left to others
		if _, labels := w.versions(); labels[upstream.ACSCurrent] == "v1" || w.sets != 1 {
			t.Errorf("labels %v, %d sets", labels, w.sets)
		}
	})
}

// clockAhead is an upstream whose clock the agent's own is ahead of.
type clockAhead struct {
	rotation.Upstream
	by time.Duration
}

func (c clockAhead) ListSecretVersionIDs(ctx context.Context, in upstream.ListSecretVersionIDsInput) (upstream.ListSecretVersionIDsOutput, error) {
	out, err := c.Upstream.ListSecretVersionIDs(ctx, in)
	for i := range out.Versions {
		out.Versions[i].CreateTime = out.Versions[i].CreateTime.Add(-c.by)
	}
	return out, err
}

// A clock that is far ahead makes rotations come twice as often, and not each second.
func TestAClockThatIsAhead(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		var old *rotation.Rotator
		for range 2 { // also after a reload
			r, err := rotation.New(rotation.Options{
				Rotations: []rotation.Rotation{w.rotation()}, Run: w.run,
				Upstream: func() rotation.Upstream { return clockAhead{w.store, 365 * 24 * time.Hour} },
			})
			must(t, err)
			if old != nil {
				r.Continue(old)
			}
			old = r
			runFor(t, r, 5*time.Hour)
			if ids, _ := w.versions(); len(ids) != 2 {
				t.Fatalf("%d versions", len(ids))
			}
		}
		runFor(t, old, 10*time.Hour)
		if ids, _ := w.versions(); len(ids) != 3 {
			t.Errorf("%d versions after the next time", len(ids))
		}
		w.check("a clock that is ahead")
	})
}
