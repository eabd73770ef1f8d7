package upstreamtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"secretagent/upstream"
)

var passwordPromises = []promise{
	{"a password has the length that was asked for, thirty-two characters unless told, and is another each time", func(t *suite) {
		seen := map[string]bool{}
		for length, want := range map[int]int{0: 32, 8: 8, 9: 9, 128: 128} {
			for range 5 {
				p := t.draw(upstream.RandomPasswordInput{PasswordLength: length})
				if len(p) != want || strings.Trim(p, lowercase+uppercase+numbers+punctuation) != "" || seen[p] {
					t.Errorf("%d characters, some outside the alphabet, or drawn twice", len(p))
				}
				seen[p] = true
			}
		}
	}},
	{"excluded types and characters do not occur", func(t *suite) {
		for _, c := range []struct {
			in        upstream.RandomPasswordInput
			forbidden string
		}{
			{upstream.RandomPasswordInput{ExcludeLowercase: true}, lowercase},
			{upstream.RandomPasswordInput{ExcludeUppercase: true}, uppercase},
			{upstream.RandomPasswordInput{ExcludeNumbers: true}, numbers},
			{upstream.RandomPasswordInput{ExcludePunctuation: true}, punctuation},
			{upstream.RandomPasswordInput{ExcludeCharacters: "\"'\\%&=+ é"}, "\"'\\%&=+ é"},
			{upstream.RandomPasswordInput{ExcludeLowercase: true, ExcludeUppercase: true, ExcludePunctuation: true, ExcludeCharacters: "0123"},
				lowercase + uppercase + punctuation + "0123"},
		} {
			c.in.PasswordLength = 128
			if p := t.draw(c.in); strings.ContainsAny(p, c.forbidden) {
				t.Errorf("%+v: a forbidden character occurs", c.in)
			}
		}
	}},
	{"every included type occurs when it is required", func(t *suite) {
		for range 50 {
			p := t.draw(upstream.RandomPasswordInput{PasswordLength: 8, RequireEachIncludedType: true, ExcludePunctuation: true})
			for _, chars := range []string{lowercase, uppercase, numbers} {
				if !strings.ContainsAny(p, chars) {
					t.Errorf("nothing of %s", chars)
				}
			}
		}
	}},
	{"a request that cannot be met is refused", func(t *suite) {
		for _, in := range []upstream.RandomPasswordInput{
			{PasswordLength: 7}, {PasswordLength: 129}, {PasswordLength: -1},
			{ExcludeLowercase: true, ExcludeUppercase: true, ExcludeNumbers: true, ExcludePunctuation: true},
			{ExcludeLowercase: true, ExcludeUppercase: true, ExcludePunctuation: true, ExcludeCharacters: numbers},
		} {
			t.refused(fmt.Sprintf("%+v", in), only(t.m.GetRandomPassword(t.Context(), in)), upstream.ErrInvalidParameter)
		}
	}},
}

func (t *suite) draw(in upstream.RandomPasswordInput) string {
	t.Helper()
	p, err := t.m.GetRandomPassword(t.Context(), in)
	t.ok("draw", err)
	return string(p.Reveal())
}

// Operation is one call of a method.
type Operation struct {
	Op  string // as in the KMS API
	Run func() error
}

// EveryCall calls each method once, in a way that succeeds or changes something on a backend
// with a secret of that name that has the one version v1, where secrets have policies.
func EveryCall(ctx context.Context, m upstream.Manager, name upstream.SecretName) []Operation {
	description, names := "changed", []upstream.SecretName{name}
	create := upstream.CreateSecretInput{SecretName: name + "/new", VersionID: "v1", SecretData: data("x")}
	put := upstream.PutSecretValueInput{SecretName: name, VersionID: "v2", SecretData: data("v2")}
	stage := upstream.UpdateSecretVersionStageInput{SecretName: name, VersionStage: "blue", MoveToVersion: "v1"}
	return []Operation{
		{"GetSecretValue", func() error { return only(m.GetSecretValue(ctx, upstream.SecretRef{SecretName: name})) }},
		{"CreateSecret", func() error { return only(m.CreateSecret(ctx, create)) }},
		{"PutSecretValue", func() error { return only(m.PutSecretValue(ctx, put)) }},
		{"UpdateSecretVersionStage", func() error { return m.UpdateSecretVersionStage(ctx, stage) }},
		{"ListSecretVersionIds", func() error {
			return only(m.ListSecretVersionIDs(ctx, upstream.ListSecretVersionIDsInput{SecretName: name}))
		}},
		{"DescribeSecret", func() error { return only(m.DescribeSecret(ctx, name, true)) }},
		{"ListSecrets", func() error { return only(m.ListSecrets(ctx, upstream.ListSecretsInput{})) }},
		{"UpdateSecret", func() error {
			return m.UpdateSecret(ctx, upstream.UpdateSecretInput{SecretName: name, Description: &description})
		}},
		{"DeleteSecret", func() error { return only(m.DeleteSecret(ctx, upstream.DeleteSecretInput{SecretName: name})) }},
		{"RestoreSecret", func() error { return m.RestoreSecret(ctx, name) }},
		{"GetSecretPolicy", func() error { return only(m.GetSecretPolicy(ctx, name)) }},
		{"SetSecretPolicy", func() error { return m.SetSecretPolicy(ctx, name, upstream.DefaultPolicy) }},
		{"GetRandomPassword", func() error { return only(m.GetRandomPassword(ctx, upstream.RandomPasswordInput{})) }},
		{"TagResources", func() error { return m.TagResources(ctx, names, manyTags(1)) }},
		{"UntagResources", func() error {
			return m.UntagResources(ctx, upstream.UntagResourcesInput{SecretNames: names, All: true})
		}},
		{"ListTagResources", func() error { return only(m.ListTagResources(ctx, upstream.ListTagResourcesInput{SecretNames: names})) }},
	}
}

// allRefused checks that every call but those of some operations is refused, with an error
// that names the operation.
func (t *suite) allRefused(name upstream.SecretName, sentinels []error, except ...string) {
	t.Helper()
	for _, call := range EveryCall(t.Context(), t.m, name) {
		if slices.Contains(except, call.Op) {
			continue
		}
		err := call.Run()
		t.refused(fmt.Sprintf("%s of %q", call.Op, name), err, sentinels...)
		if e, ok := errors.AsType[*upstream.Error](err); ok && e.Op != call.Op {
			t.Errorf("%s: the error names %q", call.Op, e.Op)
		}
	}
}

var namePromises = []promise{
	{"a secret that does not exist is not found", func(t *suite) {
		t.allRefused(missing, []error{upstream.ErrNotFound}, "CreateSecret", "ListSecrets", "GetRandomPassword", "ListTagResources")
	}},
	{"a malformed name is refused", func(t *suite) {
		for _, name := range []upstream.SecretName{"a b", "../\x00", upstream.SecretName(strings.Repeat("n", upstream.MaxSecretNameLen+1))} {
			t.allRefused(name, invalid, "ListSecrets", "GetRandomPassword")
		}
		t.allRefused("", invalid, "CreateSecret", "ListSecrets", "GetRandomPassword")
	}},
}

var contextPromises = []promise{
	{"a call whose context is cancelled or past its deadline returns its error and changes nothing", func(t *suite) {
		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
		defer cancel()
		for ctx, want := range map[context.Context]error{cancelled: context.Canceled, late: context.DeadlineExceeded} {
			for _, call := range EveryCall(ctx, t.m, app) {
				if err := call.Run(); !errors.Is(err, want) {
					t.Errorf("%s: got %v, want %v", call.Op, err, want)
				}
			}
		}
		t.holds("v1 ACSCurrent")
		if names := t.names(100); !slices.Equal(names, one) {
			t.Errorf("the secrets are %v", names)
		}
		if meta := t.describe(app); meta.Description != "" || !meta.PlannedDeleteTime.IsZero() || len(meta.Tags) > 0 {
			t.Errorf("got %+v", meta)
		}
	}},
}

var concurrencyPromises = []promise{
	{"readers never see a mixed value while writers rotate", func(t *suite) {
		var done atomic.Bool
		var reading sync.WaitGroup
		for range 4 {
			reading.Go(func() {
				for !done.Load() {
					v, err := t.get(upstream.SecretRef{SecretName: app})
					if err != nil || string(v.SecretData.Reveal()) != string(v.VersionID) || !slices.Contains(v.VersionStages, upstream.ACSCurrent) {
						t.Errorf("version %s with labels %v holds the data of another: %v", v.VersionID, v.VersionStages, err)
						return
					}
				}
			})
		}
		for _, err := range together(4, func(w int) (err error) {
			for i := range 12 {
				id := fmt.Sprintf("w%d-%d", w, i)
				err = errors.Join(err, t.putValue(upstream.VersionID(id), id))
			}
			return err
		}) {
			t.ok("put", err)
		}
		done.Store(true)
		reading.Wait()
		t.labelledOnce(maxVersions)
	}},
	{"of several writers of one version with different data exactly one wins", func(t *suite) {
		t.oneWins(app, func(value string) error { return t.putValue("v2", value) })
		t.lists("v2 ACSCurrent", "v1 ACSPrevious")
	}},
	{"several writers of one version with the same data all succeed", func(t *suite) {
		for _, err := range together(8, func(int) error { return t.putValue("v2", "v2") }) {
			t.ok("put", err)
		}
		t.holds("v2 ACSCurrent", "v1 ACSPrevious")
	}},
	{"of several creators of one name exactly one wins", func(t *suite) {
		t.oneWins("app/new", func(value string) error { return t.createWith("app/new", value) })
	}},
	{"every method may be called at the same time", func(t *suite) {
		calls := slices.Repeat(EveryCall(t.Context(), t.m, app), 3)
		for i, err := range together(len(calls), func(i int) error { return calls[i].Run() }) {
			// The order decides what each call finds; none may fail inside.
			if errors.Is(err, upstream.ErrInternal) || errors.Is(err, upstream.ErrUnavailable) {
				t.Errorf("%s: %v", calls[i].Op, err)
			}
		}
		_ = t.m.RestoreSecret(t.Context(), app)
		t.labelledOnce(2)
	}},
}

// together makes n calls at the same time and returns their errors.
func together(n int, call func(i int) error) []error {
	errs := make([]error, n)
	var running sync.WaitGroup
	for i := range errs {
		running.Go(func() { errs[i] = call(i) })
	}
	running.Wait()
	return errs
}

// oneWins writes different values of a secret at the same time: one is there in the end, and all
// other writers are refused.
func (t *suite) oneWins(name upstream.SecretName, write func(value string) error) {
	t.Helper()
	value := func(i int) string { return fmt.Sprint("writer ", i) }
	errs := together(8, func(i int) error { return write(value(i)) })
	v := t.read(upstream.SecretRef{SecretName: name})
	for i, err := range errs {
		if string(v.SecretData.Reveal()) == value(i) {
			t.ok("the winner", err)
		} else {
			t.refused("a loser", err, upstream.ErrExists)
		}
	}
}

// labelledOnce checks that no label is on two versions, that ACSCurrent is on one, and how
// many versions there are at most.
func (t *suite) labelledOnce(most int) {
	t.Helper()
	all := t.all()
	if len(all) > most {
		t.Errorf("%d versions, at most %d are kept", len(all), most)
	}
	holder := map[upstream.VersionStage]upstream.VersionID{}
	for _, v := range all {
		for _, stage := range v.VersionStages {
			if other, taken := holder[stage]; taken {
				t.Errorf("%s is on %s and on %s", stage, other, v.VersionID)
			}
			holder[stage] = v.VersionID
		}
	}
	if holder[upstream.ACSCurrent] == "" {
		t.Error("no version carries ACSCurrent")
	}
}
