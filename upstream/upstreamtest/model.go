package upstreamtest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"secretagent/upstream"
)

// Model is a backend that [CheckModel] compares with the oracle.
type Model struct {
	// Now and Advance are its clock.
	Now     func() time.Time
	Advance func(d time.Duration)

	// Store returns who takes the next call. There may be several who share what they keep.
	Store func() upstream.Manager

	// BeforeList waits until every store lists what all of them have written; nil where they always do.
	BeforeList func()

	// Actions are further things to happen now and then that change nothing which can be seen, by
	// their names.
	Actions map[string]Action
}

// Action is something that a backend does besides its operations.
type Action struct {
	Rarely bool // one time in ten only
	Do     func() error
}

// Small domains make collisions likely.
var (
	modelNames  = []upstream.SecretName{"a", "a/b", "b"}
	modelIDs    = []upstream.VersionID{"v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13"}
	modelStages = []upstream.VersionStage{"ACSCurrent", "ACSPrevious", "l1", "l2", "l3", "l4", "l5", "l6", "l7"}
	modelData   = []string{"one", "two", strings.Repeat("three", 1000)}
	// More often than not there is none.
	modelPolicies = []string{"", "", "", "{}", `{"Version":"1","Statement":[{"Effect":"Allow","Principal":{"RAM":["x"]},"Action":"kms:*","Resource":"*"}]}`}
	modelTypes    = []string{upstream.DataTypeText, "", upstream.DataTypeBinary}
)

// system drives a backend and the oracle side by side. The oracle is the fake, which
// keeps versions and labels in maps and lists of its own.
type system struct {
	Model
	maxVersions int
	emulate     Emulation
	oracle      *Fake
}

func oneOf[T any](t *rapid.T, label string, values []T) T {
	return rapid.SampledFrom(values).Draw(t, label)
}

func orNothing[T ~string](t *rapid.T, label string, values []T) T {
	return rapid.SampledFrom(append([]T{""}, values...)).Draw(t, label)
}

// both makes the same call to the backend and to the oracle and compares the answers,
// errors included, and then everything about the secrets that it has touched.
func both[T any](t *rapid.T, sys *system, what string, call func(upstream.Manager) (T, error), touched ...upstream.SecretName) (answer T, err error) {
	t.Helper()
	got, err := call(sys.Store())
	want, wantErr := call(sys.oracle)
	if (err == nil) != (wantErr == nil) || err != nil && upstream.Code(err) != upstream.Code(wantErr) {
		t.Fatalf("%s: the backend answers %v, the oracle %v", what, err, wantErr)
	}
	if err == nil && !reflect.DeepEqual(alike(t, got), alike(t, want)) {
		t.Fatalf("%s:\n got %+v\nwant %+v", what, got, want)
	}
	sys.compare(t, touched...)
	return want, err
}

// alike returns an answer without what differs between two backends: request ids and the
// region in ARNs.
func alike(t *rapid.T, answer any) any {
	switch a := answer.(type) {
	case upstream.SecretValue:
		a.RequestID = ""
		return a
	case upstream.SecretMetadata:
		a.ARN = strings.Replace(a.ARN, "acs:kms:fake:0:", "acs:kms:local:0:", 1)
		return a
	case upstream.ListSecretsOutput:
		secrets := make([]any, len(a.Secrets))
		for i, m := range a.Secrets {
			secrets[i] = alike(t, m)
		}
		return []any{secrets, a.Page, a.TotalCount}
	case upstream.ListSecretVersionIDsOutput:
		return []any{a.SecretName, append([]upstream.SecretVersion{}, a.Versions...), a.Page, a.TotalCount}
	}
	return answer
}

// same is both for calls that answer nothing.
func same(t *rapid.T, sys *system, what string, call func(upstream.Manager) error, touched ...upstream.SecretName) {
	t.Helper()
	_, _ = both(t, sys, what, func(m upstream.Manager) (any, error) { return nil, call(m) }, touched...)
}

func (sys *system) actions() map[string]func(*rapid.T) {
	ctx := context.Background()
	put := func(t *rapid.T) {
		in := upstream.PutSecretValueInput{
			SecretName: oneOf(t, "name", modelNames), VersionID: oneOf(t, "id", modelIDs),
			SecretData: data(oneOf(t, "data", modelData)), SecretDataType: oneOf(t, "type", modelTypes),
		}
		if rapid.Bool().Draw(t, "the same") { // which is rare by chance
			if v, err := sys.oracle.GetSecretValue(ctx, upstream.SecretRef{SecretName: in.SecretName, VersionID: in.VersionID}); err == nil {
				in.SecretData, in.SecretDataType = v.SecretData, v.SecretDataType
			}
		}
		if rapid.IntRange(0, 2).Draw(t, "labels") == 0 {
			in.VersionStages = rapid.SliceOfN(rapid.SampledFrom(modelStages), 0, 9).Draw(t, "stages")
		}
		_, _ = both(t, sys, "put", func(m upstream.Manager) (upstream.SecretVersion, error) { return m.PutSecretValue(ctx, in) }, in.SecretName)
	}
	actions := map[string]func(*rapid.T){
		"create": func(t *rapid.T) {
			sys.create(t, upstream.CreateSecretInput{
				SecretName: oneOf(t, "name", modelNames), VersionID: orNothing(t, "id", modelIDs),
				SecretData: data(oneOf(t, "data", modelData)), SecretDataType: oneOf(t, "type", modelTypes),
				Description: oneOf(t, "description", []string{"", "text", "ü"}), Tags: drawTags(t),
				EncryptionKeyID: oneOf(t, "key", []string{"", "", "key-1", "alias/app", "key-2"}),
				DKMSInstanceID:  oneOf(t, "instance", []string{"", "", "kst-1", "kst-2"}),
				Policy:          oneOf(t, "policy", modelPolicies),
			})
		},
		"policy": func(t *rapid.T) {
			name, policy := oneOf(t, "name", modelNames), oneOf(t, "policy", modelPolicies)
			same(t, sys, "policy", func(m upstream.Manager) error { return m.SetSecretPolicy(ctx, name, policy) }, name)
		},
		"put":       put,
		"put again": put, // twice as likely as the others
		"stage": func(t *rapid.T) {
			in := upstream.UpdateSecretVersionStageInput{
				SecretName: oneOf(t, "name", modelNames), VersionStage: oneOf(t, "stage", modelStages),
				MoveToVersion: orNothing(t, "to", modelIDs), RemoveFromVersion: orNothing(t, "from", modelIDs),
			}
			// A holder that is right by chance is rare; take it from the oracle now and then.
			if rapid.Bool().Draw(t, "from the holder") {
				if v, err := sys.oracle.GetSecretValue(ctx, upstream.SecretRef{SecretName: in.SecretName, VersionStage: in.VersionStage}); err == nil {
					in.RemoveFromVersion = v.VersionID
				}
			}
			same(t, sys, "stage", func(m upstream.Manager) error { return m.UpdateSecretVersionStage(ctx, in) }, in.SecretName)
		},
		"get": func(t *rapid.T) {
			sys.compareGet(t, upstream.SecretRef{SecretName: oneOf(t, "name", modelNames), VersionID: orNothing(t, "id", modelIDs), VersionStage: orNothing(t, "stage", modelStages)})
		},
		"update": func(t *rapid.T) {
			in := upstream.UpdateSecretInput{SecretName: oneOf(t, "name", modelNames)}
			if rapid.Bool().Draw(t, "with description") {
				text := oneOf(t, "description", []string{"", "new"})
				in.Description = &text
			}
			same(t, sys, "update", func(m upstream.Manager) error { return m.UpdateSecret(ctx, in) }, in.SecretName)
		},
		"delete": func(t *rapid.T) {
			in := upstream.DeleteSecretInput{
				SecretName: oneOf(t, "name", modelNames), RecoveryWindowInDays: oneOf(t, "days", []int{0, 6, 7, 30, 31}),
				ForceDeleteWithoutRecovery: oneOf(t, "force", []bool{false, false, true}),
			}
			_, _ = both(t, sys, "delete", func(m upstream.Manager) (time.Time, error) { return m.DeleteSecret(ctx, in) }, in.SecretName)
		},
		"restore": func(t *rapid.T) {
			sys.Advance(time.Second) // so that times that should change do
			name := oneOf(t, "name", modelNames)
			same(t, sys, "restore", func(m upstream.Manager) error { return m.RestoreSecret(ctx, name) }, name)
		},
		"tag": func(t *rapid.T) {
			names, tags := drawNames(t), append(drawTags(t), upstream.Tag{Key: "always", Value: "x"})
			same(t, sys, "tag", func(m upstream.Manager) error { return m.TagResources(ctx, names, tags) }, names...)
		},
		"untag": func(t *rapid.T) {
			in := upstream.UntagResourcesInput{SecretNames: drawNames(t), All: true} // counts only without keys
			for _, tag := range drawTags(t) {
				in.TagKeys = append(in.TagKeys, tag.Key)
			}
			same(t, sys, "untag", func(m upstream.Manager) error { return m.UntagResources(ctx, in) }, in.SecretNames...)
		},
		"list": sys.compareLists,
		"time passes": func(t *rapid.T) {
			sys.Advance(oneOf(t, "by", []time.Duration{time.Second, time.Minute, time.Hour, 7 * day, 7*day - time.Second, 30 * day}))
		},
	}
	for name, action := range sys.Actions {
		actions[name] = func(t *rapid.T) {
			if action.Rarely && rapid.IntRange(0, 9).Draw(t, "really") > 0 {
				return
			}
			if err := action.Do(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	return actions
}

func drawNames(t *rapid.T) []upstream.SecretName {
	return rapid.SliceOfNDistinct(rapid.SampledFrom(modelNames), 1, 2, rapid.ID[upstream.SecretName]).Draw(t, "names")
}

func drawTags(t *rapid.T) []upstream.Tag {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) upstream.Tag {
		// More than 20 keys exist, so that the limit can be met.
		return upstream.Tag{Key: fmt.Sprint("k", rapid.IntRange(0, 29).Draw(t, "key")), Value: oneOf(t, "value", []string{"", "x", "y"})}
	}), 0, 18).Draw(t, "tags")
}

func (sys *system) create(t *rapid.T, in upstream.CreateSecretInput) {
	_, _ = both(t, sys, "create", func(m upstream.Manager) (upstream.SecretMetadata, error) {
		return m.CreateSecret(context.Background(), in)
	}, in.SecretName)
}

// compare looks at everything about some secrets.
func (sys *system) compare(t *rapid.T, names ...upstream.SecretName) {
	t.Helper()
	ctx := context.Background()
	for _, name := range names {
		_, _ = both(t, sys, "policy", func(m upstream.Manager) (string, error) { return m.GetSecretPolicy(ctx, name) })
		_, _ = both(t, sys, "describe", func(m upstream.Manager) (upstream.SecretMetadata, error) { return m.DescribeSecret(ctx, name, true) })
		for _, deprecated := range []bool{false, true} {
			out, _ := both(t, sys, "versions", func(m upstream.Manager) (upstream.ListSecretVersionIDsOutput, error) {
				return m.ListSecretVersionIDs(ctx, upstream.ListSecretVersionIDsInput{SecretName: name, IncludeDeprecated: deprecated})
			})
			for _, v := range out.Versions {
				sys.compareGet(t, upstream.SecretRef{SecretName: name, VersionID: v.VersionID})
				for _, stage := range v.VersionStages {
					sys.compareGet(t, upstream.SecretRef{SecretName: name, VersionStage: stage})
				}
			}
		}
	}
}

func (sys *system) compareGet(t *rapid.T, ref upstream.SecretRef) {
	t.Helper()
	_, _ = both(t, sys, "get "+ref.String(), func(m upstream.Manager) (upstream.SecretValue, error) {
		return m.GetSecretValue(context.Background(), ref)
	})
}

// compareLists looks at the lists, with pages and filters.
func (sys *system) compareLists(t *rapid.T) {
	if sys.BeforeList != nil {
		sys.BeforeList()
	}
	ctx := context.Background()
	in := upstream.ListSecretsInput{FetchTags: true, Page: upstream.Page{Number: rapid.IntRange(0, 3).Draw(t, "page"), Size: rapid.IntRange(0, 3).Draw(t, "size")}}
	if rapid.Bool().Draw(t, "filtered") {
		in.Filters = oneOf(t, "filters", [][]upstream.Filter{{{Key: "DKMSInstanceId", Values: []string{"kst-1"}}}, {{Key: "TagKey", Values: []string{"k1", "k2", "always"}}, {Key: "SecretName", Values: []string{"a", "b", "zz"}}}})
	}
	permitted := rapid.SampledFrom([][]string{nil, nil, {}, {"a*"}, {"b", "*b"}}).Draw(t, "permitted")
	in.Permitted = permitted
	_, _ = both(t, sys, "list", func(m upstream.Manager) (upstream.ListSecretsOutput, error) { return m.ListSecrets(ctx, in) })
	rows := upstream.ListTagResourcesInput{SecretNames: modelNames}
	if rapid.Bool().Draw(t, "by tag") {
		rows = upstream.ListTagResourcesInput{Tags: []upstream.Tag{{Key: "always"}, {Key: "k1", Value: "x"}}[:1+rapid.IntRange(0, 1).Draw(t, "tags")]}
	}
	rows.Permitted = permitted
	_, _ = both(t, sys, "tag rows", func(m upstream.Manager) ([]upstream.TagRow, error) {
		out, err := m.ListTagResources(ctx, rows)
		return append([]upstream.TagRow{}, out.Rows...), err
	})
}

// CheckModel drives random sequences of operations through a backend and the oracle and compares
// everything that can be observed, errors included. Open is called for several limits of versions.
func CheckModel(t *testing.T, sequences int, open func(t *testing.T, maxVersions int, emulate Emulation) Model) {
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		if err := f.Value.Set(strconv.Itoa(sequences)); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Value.Set(f.DefValue) }()
	}
	limits := []int{2, 4, 10}
	systems := map[int]*system{}
	for _, limit := range limits {
		sys := &system{maxVersions: limit, emulate: Emulation{InstanceID: "kst-1", Keys: []string{"key-1", "alias/app"}, PutMovesStages: true}}
		if limit == 4 {
			sys.emulate = Emulation{}
		}
		sys.Model = open(t, limit, sys.emulate)
		systems[limit] = sys
	}
	rapid.Check(t, func(t *rapid.T) {
		sys := systems[oneOf(t, "limit", limits)]
		sys.oracle = NewFake()
		sys.oracle.Now, sys.oracle.MaxVersions, sys.oracle.Emulate = sys.Now, sys.maxVersions, sys.emulate
		for _, name := range modelNames {
			_, err := sys.Store().DeleteSecret(context.Background(), upstream.DeleteSecretInput{SecretName: name, ForceDeleteWithoutRecovery: true})
			if err != nil && !errors.Is(err, upstream.ErrNotFound) {
				t.Fatal(err)
			}
		}
		// Most sequences start with something to work on.
		sys.create(t, upstream.CreateSecretInput{SecretName: "a", VersionID: "v1", SecretData: data("one")})
		t.Repeat(sys.actions())
		sys.compare(t, modelNames...)
		sys.compareLists(t)
	})
}
