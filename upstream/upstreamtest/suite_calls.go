package upstreamtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"secretagent/upstream"
)

var passwordPromises = []promise{
	{"a password has thirty-two characters of the alphabet, and another each time", func(t *suite) {
		seen := map[string]bool{}
		for range 20 {
			p, err := t.m.GetRandomPassword(t.Context(), upstream.RandomPasswordInput{})
			t.ok("draw", err)
			password := string(p.Reveal())
			if len(password) != 32 || strings.Trim(password, lowercase+uppercase+numbers+punctuation) != "" {
				t.Errorf("%d characters, some outside the alphabet", len(password))
			}
			if seen[password] {
				t.Error("a password was drawn twice")
			}
			seen[password] = true
		}
	}},
	{"a password has the length that was asked for", func(t *suite) {
		for _, length := range []int{8, 9, 128} {
			p, err := t.m.GetRandomPassword(t.Context(), upstream.RandomPasswordInput{PasswordLength: length})
			t.ok("draw", err)
			if p.Len() != length {
				t.Errorf("%d characters, want %d", p.Len(), length)
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
			p, err := t.m.GetRandomPassword(t.Context(), c.in)
			t.ok("draw", err)
			if strings.ContainsAny(string(p.Reveal()), c.forbidden) {
				t.Errorf("%+v: a forbidden character occurs", c.in)
			}
		}
	}},
	{"every included type occurs when it is required", func(t *suite) {
		for range 50 {
			p, err := t.m.GetRandomPassword(t.Context(), upstream.RandomPasswordInput{PasswordLength: 8, RequireEachIncludedType: true, ExcludePunctuation: true})
			t.ok("draw", err)
			for _, chars := range []string{lowercase, uppercase, numbers} {
				if !strings.ContainsAny(string(p.Reveal()), chars) {
					t.Errorf("nothing of %s", chars)
				}
			}
			if strings.ContainsAny(string(p.Reveal()), punctuation) {
				t.Error("punctuation occurs")
			}
		}
	}},
	{"every character of the alphabet can occur", func(t *suite) {
		var all strings.Builder
		for range 40 {
			p, err := t.m.GetRandomPassword(t.Context(), upstream.RandomPasswordInput{PasswordLength: 128})
			t.ok("draw", err)
			all.Write(p.Reveal())
		}
		for _, c := range lowercase + uppercase + numbers + punctuation {
			if !strings.ContainsRune(all.String(), c) { // misses one in about 10^22 runs
				t.Errorf("%q never occurs", c)
			}
		}
	}},
	{"a request that cannot be met is refused", func(t *suite) {
		for _, in := range []upstream.RandomPasswordInput{
			{PasswordLength: 7}, {PasswordLength: 129}, {PasswordLength: -1},
			{ExcludeLowercase: true, ExcludeUppercase: true, ExcludeNumbers: true, ExcludePunctuation: true},
			{ExcludeLowercase: true, ExcludeUppercase: true, ExcludePunctuation: true, ExcludeCharacters: numbers},
		} {
			_, err := t.m.GetRandomPassword(t.Context(), in)
			t.refused(fmt.Sprintf("%+v", in), err, upstream.ErrInvalidParameter)
		}
	}},
}

// everyCall calls each method once, in a way that succeeds or changes something on a backend
// with a secret app/db that has the one version v1.
func everyCall(m upstream.Manager) []struct {
	op  string
	run func(ctx context.Context) error
} {
	description := "changed"
	return []struct {
		op  string
		run func(ctx context.Context) error
	}{
		{"GetSecretValue", func(ctx context.Context) error {
			_, err := m.GetSecretValue(ctx, upstream.SecretRef{SecretName: app})
			return err
		}},
		{"CreateSecret", func(ctx context.Context) error {
			_, err := m.CreateSecret(ctx, upstream.CreateSecretInput{SecretName: "new", VersionID: "v1", SecretData: data("x")})
			return err
		}},
		{"PutSecretValue", func(ctx context.Context) error {
			_, err := m.PutSecretValue(ctx, upstream.PutSecretValueInput{SecretName: app, VersionID: "v2", SecretData: data("v2")})
			return err
		}},
		{"UpdateSecretVersionStage", func(ctx context.Context) error {
			return m.UpdateSecretVersionStage(ctx, upstream.UpdateSecretVersionStageInput{SecretName: app, VersionStage: "blue", MoveToVersion: "v1"})
		}},
		{"ListSecretVersionIds", func(ctx context.Context) error {
			_, err := m.ListSecretVersionIDs(ctx, upstream.ListSecretVersionIDsInput{SecretName: app})
			return err
		}},
		{"DescribeSecret", func(ctx context.Context) error {
			_, err := m.DescribeSecret(ctx, app, true)
			return err
		}},
		{"ListSecrets", func(ctx context.Context) error {
			_, err := m.ListSecrets(ctx, upstream.ListSecretsInput{})
			return err
		}},
		{"UpdateSecret", func(ctx context.Context) error {
			return m.UpdateSecret(ctx, upstream.UpdateSecretInput{SecretName: app, Description: &description})
		}},
		{"DeleteSecret", func(ctx context.Context) error {
			_, err := m.DeleteSecret(ctx, upstream.DeleteSecretInput{SecretName: app})
			return err
		}},
		{"RestoreSecret", func(ctx context.Context) error { return m.RestoreSecret(ctx, app) }},
		{"RotateSecret", func(ctx context.Context) error { return m.RotateSecret(ctx, app, "v9") }},
		{"UpdateSecretRotationPolicy", func(ctx context.Context) error {
			return m.UpdateSecretRotationPolicy(ctx, upstream.RotationPolicyInput{SecretName: app})
		}},
		{"GetRandomPassword", func(ctx context.Context) error {
			_, err := m.GetRandomPassword(ctx, upstream.RandomPasswordInput{})
			return err
		}},
		{"TagResources", func(ctx context.Context) error {
			return m.TagResources(ctx, []upstream.SecretName{app}, []upstream.Tag{{Key: "env", Value: "dev"}})
		}},
		{"UntagResources", func(ctx context.Context) error {
			return m.UntagResources(ctx, upstream.UntagResourcesInput{SecretNames: []upstream.SecretName{app}, All: true})
		}},
		{"ListTagResources", func(ctx context.Context) error {
			_, err := m.ListTagResources(ctx, upstream.ListTagResourcesInput{SecretNames: []upstream.SecretName{app}})
			return err
		}},
	}
}

var contextPromises = []promise{
	{"a cancelled call returns context.Canceled and changes nothing", func(t *suite) {
		t.create(app)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		t.unchangedBy(ctx, context.Canceled)
	}},
	{"a call past its deadline returns context.DeadlineExceeded and changes nothing", func(t *suite) {
		t.create(app)
		ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
		defer cancel()
		t.unchangedBy(ctx, context.DeadlineExceeded)
	}},
}

// unchangedBy makes every call with a context that is done.
func (t *suite) unchangedBy(ctx context.Context, want error) {
	for _, call := range everyCall(t.m) {
		if err := call.run(ctx); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", call.op, err, want)
		}
	}
	t.holds("v1 ACSCurrent")
	t.tagged(app)
	if names := t.names(100); !slices.Equal(names, []upstream.SecretName{app}) {
		t.Errorf("the secrets are %v", names)
	}
	meta, err := t.m.DescribeSecret(t.Context(), app, false)
	t.ok("describe", err)
	if meta.Description != "" || !meta.PlannedDeleteTime.IsZero() {
		t.Errorf("got %+v", meta)
	}
}

var concurrencyPromises = []promise{
	{"readers never see a mixed value while writers rotate", func(t *suite) {
		t.create(app)
		const writers, puts, readers = 4, 12, 4
		var writing, reading sync.WaitGroup
		done := make(chan struct{})
		for w := range writers {
			writing.Go(func() {
				for i := range puts {
					id := upstream.VersionID(fmt.Sprintf("w%d-%d", w, i))
					in := upstream.PutSecretValueInput{SecretName: app, VersionID: id, SecretData: data(string(id))}
					if _, err := t.m.PutSecretValue(t.Context(), in); err != nil {
						t.Errorf("put %s: %v", id, err)
					}
				}
			})
		}
		for range readers {
			reading.Go(func() {
				for {
					select {
					case <-done:
						return
					default:
					}
					v, err := t.get(upstream.SecretRef{SecretName: app})
					if err != nil {
						t.Errorf("read: %v", err)
						return
					}
					if string(v.SecretData.Reveal()) != string(v.VersionID) || !slices.Contains(v.VersionStages, upstream.ACSCurrent) {
						t.Errorf("version %s with labels %v holds the data of another", v.VersionID, v.VersionStages)
						return
					}
				}
			})
		}
		writing.Wait()
		close(done)
		reading.Wait()
		t.labelledOnce(maxVersions)
	}},
	{"of several writers of one version with different data exactly one wins", func(t *suite) {
		t.create(app)
		const writers = 8
		errs := make([]error, writers)
		var writing sync.WaitGroup
		for w := range writers {
			writing.Go(func() {
				in := upstream.PutSecretValueInput{SecretName: app, VersionID: "v2", SecretData: data(fmt.Sprint("writer ", w))}
				_, errs[w] = t.m.PutSecretValue(t.Context(), in)
			})
		}
		writing.Wait()
		v, err := t.get(upstream.SecretRef{SecretName: app})
		t.ok("read", err)
		for w, err := range errs {
			if won := string(v.SecretData.Reveal()) == fmt.Sprint("writer ", w); won {
				t.ok("the winner", err)
			} else {
				t.refused("a loser", err, upstream.ErrExists)
			}
		}
		t.holds("v2 ACSCurrent", "v1 ACSPrevious")
	}},
	{"several writers of one version with the same data all succeed", func(t *suite) {
		t.create(app)
		var writing sync.WaitGroup
		for range 8 {
			writing.Go(func() {
				in := upstream.PutSecretValueInput{SecretName: app, VersionID: "v2", SecretData: data("v2")}
				if _, err := t.m.PutSecretValue(t.Context(), in); err != nil {
					t.Errorf("put: %v", err)
				}
			})
		}
		writing.Wait()
		t.holds("v2 ACSCurrent", "v1 ACSPrevious")
	}},
	{"of several creators of one name exactly one wins", func(t *suite) {
		const creators = 8
		errs := make([]error, creators)
		var creating sync.WaitGroup
		for c := range creators {
			creating.Go(func() {
				in := upstream.CreateSecretInput{SecretName: app, VersionID: "v1", SecretData: data(fmt.Sprint("creator ", c))}
				_, errs[c] = t.m.CreateSecret(t.Context(), in)
			})
		}
		creating.Wait()
		v, err := t.get(upstream.SecretRef{SecretName: app})
		t.ok("read", err)
		for c, err := range errs {
			if string(v.SecretData.Reveal()) == fmt.Sprint("creator ", c) {
				t.ok("the winner", err)
			} else {
				t.refused("a loser", err, upstream.ErrExists)
			}
		}
	}},
	{"every method may be called at the same time", func(t *suite) {
		t.create(app)
		var calling sync.WaitGroup
		for range 3 {
			for _, call := range everyCall(t.m) {
				calling.Go(func() {
					// Who comes first decides what each call finds; none may fail inside.
					if err := call.run(t.Context()); errors.Is(err, upstream.ErrInternal) || errors.Is(err, upstream.ErrUnavailable) {
						t.Errorf("%s: %v", call.op, err)
					}
				})
			}
		}
		calling.Wait()
		_ = t.m.RestoreSecret(t.Context(), app)
		t.labelledOnce(2)
	}},
}

// labelledOnce checks that no label is on two versions, that ACSCurrent is on one, and how
// many versions there are at most.
func (t *suite) labelledOnce(most int) {
	t.Helper()
	out, err := t.m.ListSecretVersionIDs(t.Context(), upstream.ListSecretVersionIDsInput{
		SecretName: app, IncludeDeprecated: true, Page: upstream.Page{Size: 100},
	})
	t.ok("list versions", err)
	if len(out.Versions) > most {
		t.Errorf("%d versions, at most %d are kept", len(out.Versions), most)
	}
	holder := map[upstream.VersionStage]upstream.VersionID{}
	for _, v := range out.Versions {
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
