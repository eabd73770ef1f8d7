package builtin

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"secretagent/upstream"
)

// model is a Secrets Manager that is slow and obvious: maps, lists, and each rule spelled out
// where it applies. It shares no code with the store.
type model struct {
	now         func() time.Time
	maxVersions int
	secrets     map[upstream.SecretName]*modelSecret
}

type modelSecret struct {
	description      string
	tags             map[string]string
	created, updated time.Time
	planned          time.Time
	versions         []modelVersion // oldest first
	labels           map[upstream.VersionStage]upstream.VersionID
}

type modelVersion struct {
	id       upstream.VersionID
	data     string
	dataType string
	created  time.Time
}

func (s *modelSecret) version(id upstream.VersionID) *modelVersion {
	for i := range s.versions {
		if s.versions[i].id == id {
			return &s.versions[i]
		}
	}
	return nil
}

func (s *modelSecret) stages(id upstream.VersionID) []upstream.VersionStage {
	var stages []upstream.VersionStage
	for stage, holder := range s.labels {
		if holder == id {
			stages = append(stages, stage)
		}
	}
	slices.Sort(stages)
	return stages
}

func (s *modelSecret) copy() *modelSecret {
	c := *s
	c.tags, c.labels, c.versions = maps.Clone(s.tags), maps.Clone(s.labels), slices.Clone(s.versions)
	return &c
}

// attach moves a label, as the object model says.
func (s *modelSecret) attach(stage upstream.VersionStage, id upstream.VersionID) {
	if s.labels[stage] == id {
		return
	}
	if old, ok := s.labels[upstream.ACSCurrent]; ok && stage == upstream.ACSCurrent {
		s.labels[upstream.ACSPrevious] = old
	}
	s.labels[stage] = id
}

func (m *model) second() time.Time { return m.now().Truncate(time.Second).UTC() }

func (m *model) secret(name upstream.SecretName) (*modelSecret, error) {
	s := m.secrets[name]
	if s != nil && !s.planned.IsZero() && !m.second().Before(s.planned) {
		delete(m.secrets, name)
		s = nil
	}
	if s == nil {
		return nil, upstream.ErrNotFound
	}
	return s, nil
}

func (m *model) live(name upstream.SecretName) (*modelSecret, error) {
	s, err := m.secret(name)
	if err == nil && !s.planned.IsZero() {
		return nil, upstream.ErrPendingDeletion
	}
	return s, err
}

func (m *model) create(in upstream.CreateSecretInput) error {
	if in.VersionID == "" || in.SecretData.Len() == 0 {
		return upstream.ErrMissingParameter
	}
	s, err := m.secret(in.SecretName)
	if err == nil && !s.planned.IsZero() {
		return upstream.ErrPendingDeletion
	}
	if err == nil {
		return upstream.ErrExists
	}
	now := m.second()
	s = &modelSecret{description: in.Description, tags: map[string]string{}, created: now, updated: now, labels: map[upstream.VersionStage]upstream.VersionID{}}
	for _, tag := range in.Tags {
		s.tags[tag.Key] = tag.Value
	}
	s.versions = []modelVersion{{in.VersionID, string(in.SecretData.Reveal()), in.SecretDataType, now}}
	s.labels[upstream.ACSCurrent] = in.VersionID
	m.secrets[in.SecretName] = s
	return nil
}

func (m *model) put(in upstream.PutSecretValueInput) error {
	if in.VersionID == "" || in.SecretData.Len() == 0 {
		return upstream.ErrMissingParameter
	}
	stages := in.VersionStages
	if stages == nil {
		stages = []upstream.VersionStage{upstream.ACSCurrent}
	}
	if len(stages) == 0 {
		return upstream.ErrInvalidParameter
	}
	old, err := m.live(in.SecretName)
	if err != nil {
		return err
	}
	if v := old.version(in.VersionID); v != nil {
		if v.data == string(in.SecretData.Reveal()) && v.dataType == in.SecretDataType {
			return nil
		}
		return upstream.ErrExists
	}
	s := old.copy()
	s.versions = append(s.versions, modelVersion{in.VersionID, string(in.SecretData.Reveal()), in.SecretDataType, m.second()})
	// Whatever their order, all labels asked for end on the new version.
	if slices.Contains(stages, upstream.ACSCurrent) {
		s.attach(upstream.ACSCurrent, in.VersionID)
	}
	for _, stage := range stages {
		s.attach(stage, in.VersionID)
	}
	if len(s.labels) > 8 {
		return upstream.ErrLimitExceeded
	}
	if len(s.versions) > m.maxVersions {
		oldest := -1
		for i, v := range s.versions {
			if len(s.stages(v.id)) == 0 {
				oldest = i
				break
			}
		}
		if oldest < 0 {
			return upstream.ErrLimitExceeded
		}
		s.versions = append(s.versions[:oldest:oldest], s.versions[oldest+1:]...)
	}
	s.updated = m.second()
	m.secrets[in.SecretName] = s
	return nil
}

func (m *model) stage(in upstream.UpdateSecretVersionStageInput) error {
	if in.MoveToVersion == "" && in.RemoveFromVersion == "" {
		return upstream.ErrMissingParameter
	}
	builtIn := in.VersionStage == "ACSCurrent" || in.VersionStage == "ACSPrevious"
	if in.MoveToVersion == "" && builtIn {
		return upstream.ErrInvalidParameter
	}
	old, err := m.live(in.SecretName)
	if err != nil {
		return err
	}
	s := old.copy()
	if in.MoveToVersion != "" && s.version(in.MoveToVersion) == nil || in.RemoveFromVersion != "" && s.version(in.RemoveFromVersion) == nil {
		return upstream.ErrNotFound
	}
	if in.RemoveFromVersion != "" && s.labels[in.VersionStage] != in.RemoveFromVersion {
		return upstream.ErrInvalidParameter
	}
	if in.MoveToVersion == "" {
		delete(s.labels, in.VersionStage)
	} else {
		if s.labels[in.VersionStage] == in.MoveToVersion {
			return nil
		}
		s.attach(in.VersionStage, in.MoveToVersion)
	}
	if len(s.labels) > 8 {
		return upstream.ErrLimitExceeded
	}
	s.updated = m.second()
	m.secrets[in.SecretName] = s
	return nil
}

func (m *model) get(ref upstream.SecretRef) (*modelVersion, error) {
	s, err := m.live(ref.SecretName)
	if err != nil {
		return nil, err
	}
	if ref.VersionID == "" && ref.VersionStage == "" {
		ref.VersionStage = "ACSCurrent"
	}
	holder, held := s.labels[ref.VersionStage]
	switch {
	case ref.VersionStage != "" && !held:
		return nil, upstream.ErrNotFound
	case ref.VersionID == "":
		return s.version(holder), nil
	case s.version(ref.VersionID) == nil:
		return nil, upstream.ErrNotFound
	case ref.VersionStage != "" && holder != ref.VersionID:
		return nil, upstream.ErrInvalidParameter
	}
	return s.version(ref.VersionID), nil
}

func (m *model) update(name upstream.SecretName, description *string) error {
	s, err := m.live(name)
	if err != nil {
		return err
	}
	if description != nil {
		s.description, s.updated = *description, m.second()
	}
	return nil
}

func (m *model) delete(in upstream.DeleteSecretInput) (time.Time, error) {
	days := in.RecoveryWindowInDays
	if days == 0 {
		days = 30
	}
	if !in.ForceDeleteWithoutRecovery && (days < 7 || days > 30) {
		return time.Time{}, upstream.ErrInvalidParameter
	}
	s, err := m.secret(in.SecretName)
	if err != nil {
		return time.Time{}, err
	}
	if in.ForceDeleteWithoutRecovery {
		delete(m.secrets, in.SecretName)
		return time.Time{}, nil
	}
	if !s.planned.IsZero() {
		return time.Time{}, upstream.ErrPendingDeletion
	}
	s.planned, s.updated = m.second().Add(time.Duration(days)*24*time.Hour), m.second()
	return s.planned, nil
}

func (m *model) restore(name upstream.SecretName) error {
	s, err := m.secret(name)
	if err != nil {
		return err
	}
	if s.planned.IsZero() {
		return upstream.ErrNotPendingDeletion
	}
	s.planned, s.updated = time.Time{}, m.second()
	return nil
}

func (m *model) retag(names []upstream.SecretName, change func(map[string]string)) error {
	after := map[upstream.SecretName]*modelSecret{}
	names = slices.Clone(names)
	slices.Sort(names)
	for _, name := range names {
		s, err := m.live(name)
		if err != nil {
			return err
		}
		s = s.copy()
		change(s.tags)
		if len(s.tags) > 20 {
			return upstream.ErrLimitExceeded
		}
		s.updated = m.second()
		after[name] = s
	}
	for name, s := range after {
		m.secrets[name] = s
	}
	return nil
}

func (m *model) tags(name upstream.SecretName) []upstream.Tag {
	var tags []upstream.Tag
	for key, value := range m.secrets[name].tags {
		tags = append(tags, upstream.Tag{Key: key, Value: value})
	}
	sort.Slice(tags, func(i, j int) bool { return tags[i].Key < tags[j].Key })
	return tags
}

// names of secrets that exist, sorted.
func (m *model) names() []upstream.SecretName {
	var names []upstream.SecretName
	for name := range maps.Clone(m.secrets) {
		if _, err := m.secret(name); err == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Small domains make collisions likely.
var (
	modelNames  = []upstream.SecretName{"a", "a/b", "b"}
	modelIDs    = []upstream.VersionID{"v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13"}
	modelStages = []upstream.VersionStage{"ACSCurrent", "ACSPrevious", "l1", "l2", "l3", "l4", "l5", "l6", "l7"}
	modelData   = []string{"one", "two", strings.Repeat("three", 1000)}
	modelTypes  = []string{upstream.DataTypeText, upstream.DataTypeText, upstream.DataTypeBinary}
)

// system drives a store and the model side by side.
type system struct {
	store *Store
	model *model
	clock *clock
	opts  Options
}

func oneOf[T any](t *rapid.T, label string, values []T) T {
	return rapid.SampledFrom(values).Draw(t, label)
}

func orNothing[T ~string](t *rapid.T, label string, values []T) T {
	return rapid.SampledFrom(append([]T{""}, values...)).Draw(t, label)
}

// same compares the outcome of an operation.
func same(t *rapid.T, op string, got, want error) {
	t.Helper()
	if want == nil && got != nil || want != nil && !errors.Is(got, want) {
		t.Fatalf("%s: the store answers %v, the model %v", op, got, want)
	}
}

func (sys *system) actions() map[string]func(*rapid.T) {
	ctx := context.Background()
	put := func(t *rapid.T) {
		in := upstream.PutSecretValueInput{
			SecretName: oneOf(t, "name", modelNames), VersionID: oneOf(t, "id", modelIDs),
			SecretData: secret(oneOf(t, "data", modelData)), SecretDataType: oneOf(t, "type", modelTypes),
		}
		if rapid.IntRange(0, 2).Draw(t, "labels") == 0 {
			in.VersionStages = rapid.SliceOfN(rapid.SampledFrom(modelStages), 0, 3).Draw(t, "stages")
		}
		out, err := sys.store.PutSecretValue(ctx, in)
		same(t, "put", err, sys.model.put(in))
		if err == nil {
			s := sys.model.secrets[in.SecretName]
			want := upstream.SecretVersion{VersionID: in.VersionID, CreateTime: s.version(in.VersionID).created, VersionStages: s.stages(in.VersionID)}
			if !reflect.DeepEqual(out, want) {
				t.Fatalf("put: got %+v, want %+v", out, want)
			}
		}
		sys.compare(t, in.SecretName)
	}
	return map[string]func(*rapid.T){
		"create": func(t *rapid.T) {
			in := upstream.CreateSecretInput{
				SecretName: oneOf(t, "name", modelNames), VersionID: orNothing(t, "id", modelIDs),
				SecretData: secret(oneOf(t, "data", modelData)), SecretDataType: oneOf(t, "type", modelTypes),
				Description: oneOf(t, "description", []string{"", "text", "ü"}), Tags: drawTags(t),
			}
			_, err := sys.store.CreateSecret(ctx, in)
			same(t, "create", err, sys.model.create(in))
			sys.compare(t, in.SecretName)
		},
		"put":       put,
		"put again": put, // twice as likely as the others
		"stage": func(t *rapid.T) {
			in := upstream.UpdateSecretVersionStageInput{
				SecretName: oneOf(t, "name", modelNames), VersionStage: oneOf(t, "stage", modelStages),
				MoveToVersion: orNothing(t, "to", modelIDs), RemoveFromVersion: orNothing(t, "from", modelIDs),
			}
			// A holder that is right by chance is rare; take it from the model now and then.
			if s := sys.model.secrets[in.SecretName]; s != nil && rapid.Bool().Draw(t, "from the holder") {
				in.RemoveFromVersion = s.labels[in.VersionStage]
			}
			same(t, "stage", sys.store.UpdateSecretVersionStage(ctx, in), sys.model.stage(in))
			sys.compare(t, in.SecretName)
		},
		"get": func(t *rapid.T) {
			ref := upstream.SecretRef{SecretName: oneOf(t, "name", modelNames), VersionID: orNothing(t, "id", modelIDs), VersionStage: orNothing(t, "stage", modelStages)}
			sys.compareGet(t, ref)
		},
		"update": func(t *rapid.T) {
			name := oneOf(t, "name", modelNames)
			var description *string
			if rapid.Bool().Draw(t, "with description") {
				text := oneOf(t, "description", []string{"", "new"})
				description = &text
			}
			same(t, "update", sys.store.UpdateSecret(ctx, upstream.UpdateSecretInput{SecretName: name, Description: description}), sys.model.update(name, description))
			sys.compare(t, name)
		},
		"delete": func(t *rapid.T) {
			in := upstream.DeleteSecretInput{
				SecretName: oneOf(t, "name", modelNames), RecoveryWindowInDays: oneOf(t, "days", []int{0, 6, 7, 30, 31}),
				ForceDeleteWithoutRecovery: oneOf(t, "force", []bool{false, false, true}),
			}
			got, err := sys.store.DeleteSecret(ctx, in)
			want, wantErr := sys.model.delete(in)
			same(t, "delete", err, wantErr)
			if !got.Equal(want) {
				t.Fatalf("delete: planned for %v, want %v", got, want)
			}
			sys.compare(t, in.SecretName)
		},
		"restore": func(t *rapid.T) {
			sys.clock.advance(time.Second) // so that times that should change do
			name := oneOf(t, "name", modelNames)
			same(t, "restore", sys.store.RestoreSecret(ctx, name), sys.model.restore(name))
			sys.compare(t, name)
		},
		"tag": func(t *rapid.T) {
			names := rapid.SliceOfNDistinct(rapid.SampledFrom(modelNames), 1, 2, rapid.ID[upstream.SecretName]).Draw(t, "names")
			tags := append(drawTags(t), upstream.Tag{Key: "always", Value: "x"})
			want := sys.model.retag(names, func(m map[string]string) {
				for _, tag := range tags {
					m[tag.Key] = tag.Value
				}
			})
			same(t, "tag", sys.store.TagResources(ctx, names, tags), want)
			for _, name := range names {
				sys.compare(t, name)
			}
		},
		"untag": func(t *rapid.T) {
			in := upstream.UntagResourcesInput{
				SecretNames: rapid.SliceOfNDistinct(rapid.SampledFrom(modelNames), 1, 2, rapid.ID[upstream.SecretName]).Draw(t, "names"),
				All:         true, // counts only without keys
			}
			for _, tag := range drawTags(t) {
				in.TagKeys = append(in.TagKeys, tag.Key)
			}
			want := sys.model.retag(in.SecretNames, func(m map[string]string) {
				if len(in.TagKeys) == 0 {
					clear(m)
				}
				for _, key := range in.TagKeys {
					delete(m, key)
				}
			})
			same(t, "untag", sys.store.UntagResources(ctx, in), want)
			for _, name := range in.SecretNames {
				sys.compare(t, name)
			}
		},
		"list": sys.compareLists,
		"time passes": func(t *rapid.T) {
			sys.clock.advance(oneOf(t, "by", []time.Duration{time.Second, time.Minute, time.Hour, 7 * 24 * time.Hour, 7*24*time.Hour - time.Second, 30 * 24 * time.Hour}))
		},
		"purge": func(t *rapid.T) {
			if _, err := sys.store.purgeDue(ctx); err != nil {
				t.Fatal(err)
			}
		},
		"rotate": func(t *rapid.T) {
			if rapid.IntRange(0, 9).Draw(t, "really") > 0 { // each makes the keyring longer
				return
			}
			if _, err := sys.store.RotateKey(ctx); err != nil {
				t.Fatal(err)
			}
			if err := sys.store.Reencrypt(ctx, nil); err != nil {
				t.Fatal(err)
			}
		},
		"reopen": func(t *rapid.T) {
			if rapid.IntRange(0, 9).Draw(t, "really") == 0 {
				sys.reopen(t)
			}
		},
	}
}

func drawTags(t *rapid.T) []upstream.Tag {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) upstream.Tag {
		// More than 20 keys exist, so that the limit can be met.
		return upstream.Tag{Key: fmt.Sprint("k", rapid.IntRange(0, 29).Draw(t, "key")), Value: oneOf(t, "value", []string{"", "x", "y"})}
	}), 0, 18).Draw(t, "tags")
}

func (sys *system) reopen(tb interface{ Fatal(...any) }) {
	if sys.store != nil {
		if err := sys.store.Close(); err != nil {
			tb.Fatal(err)
		}
	}
	s, err := Open(sys.opts)
	if err != nil {
		tb.Fatal(err)
	}
	s.db.NoSync = true // what is durable is for other tests
	sys.store = s
}

// compare looks at everything about one secret.
func (sys *system) compare(t *rapid.T, name upstream.SecretName) {
	t.Helper()
	ctx := context.Background()
	s, want := sys.model.secret(name)
	got, err := sys.store.DescribeSecret(ctx, name, true)
	same(t, "describe", err, want)
	for _, deprecated := range []bool{true, false} {
		out, err := sys.store.ListSecretVersionIDs(ctx, upstream.ListSecretVersionIDsInput{SecretName: name, IncludeDeprecated: deprecated})
		same(t, "versions", err, want)
		if want != nil {
			continue
		}
		var versions []upstream.SecretVersion
		for _, v := range slices.Backward(s.versions) {
			if stages := s.stages(v.id); deprecated || len(stages) > 0 {
				versions = append(versions, upstream.SecretVersion{VersionID: v.id, CreateTime: v.created, VersionStages: stages})
			}
		}
		if !reflect.DeepEqual(out.Versions, versions) || out.TotalCount != len(versions) {
			t.Fatalf("versions of %s: got %+v, want %+v", name, out.Versions, versions)
		}
	}
	if want != nil {
		return
	}
	sys.sameMetadata(t, name, got)
	seen := map[upstream.VersionStage]int{}
	for _, v := range s.versions {
		sys.compareGet(t, upstream.SecretRef{SecretName: name, VersionID: v.id})
		for _, stage := range s.stages(v.id) {
			seen[stage]++
		}
	}
	for _, stage := range modelStages {
		sys.compareGet(t, upstream.SecretRef{SecretName: name, VersionStage: stage})
		if seen[stage] > 1 {
			t.Fatalf("label %s is on %d versions", stage, seen[stage])
		}
	}
}

func (sys *system) sameMetadata(t *rapid.T, name upstream.SecretName, got upstream.SecretMetadata) {
	t.Helper()
	s := sys.model.secrets[name]
	if got.EncryptionKeyID == "" {
		t.Fatalf("%s names no key", name)
	}
	want := upstream.SecretMetadata{
		ARN: "acs:kms:local:0:secret/" + string(name), SecretName: name, SecretType: "Generic", Description: s.description,
		EncryptionKeyID: got.EncryptionKeyID, CreateTime: s.created, UpdateTime: s.updated, PlannedDeleteTime: s.planned, Tags: sys.model.tags(name),
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("metadata:\n got %+v\nwant %+v", got, want)
	}
}

func (sys *system) compareGet(t *rapid.T, ref upstream.SecretRef) {
	t.Helper()
	got, err := sys.store.GetSecretValue(context.Background(), ref)
	v, want := sys.model.get(ref)
	same(t, "get "+ref.String(), err, want)
	if want != nil {
		return
	}
	if string(got.SecretData.Reveal()) != v.data {
		t.Fatalf("get %s: wrong value", ref)
	}
	wanted := upstream.SecretValue{
		SecretName: ref.SecretName, VersionID: v.id, VersionStages: sys.model.secrets[ref.SecretName].stages(v.id), SecretData: got.SecretData,
		SecretDataType: v.dataType, SecretType: "Generic", CreateTime: v.created, RequestID: got.RequestID,
	}
	if !reflect.DeepEqual(got, wanted) {
		t.Fatalf("get %s:\n got %+v\nwant %+v", ref, got, wanted)
	}
}

// compareLists looks at the lists, with pages and filters.
func (sys *system) compareLists(t *rapid.T) {
	ctx := context.Background()
	in := upstream.ListSecretsInput{FetchTags: true, Page: upstream.Page{Number: rapid.IntRange(0, 3).Draw(t, "page"), Size: rapid.IntRange(0, 3).Draw(t, "size")}}
	if rapid.Bool().Draw(t, "filtered") {
		in.Filters = []upstream.Filter{{Key: "TagKey", Values: []string{"k1", "k2", "always"}}, {Key: "SecretName", Values: []string{"a", "b", "zz"}}}
	}
	var all []upstream.SecretName
	for _, name := range sys.model.names() {
		tags := sys.model.secrets[name].tags
		_, k1 := tags["k1"]
		_, k2 := tags["k2"]
		_, always := tags["always"]
		if in.Filters == nil || (k1 || k2 || always) && name != "a/b" {
			all = append(all, name)
		}
	}
	out, err := sys.store.ListSecrets(ctx, in)
	if err != nil {
		t.Fatal(err)
	}
	number, size := cmp.Or(in.Page.Number, 1), cmp.Or(in.Page.Size, 10)
	var want []upstream.SecretName
	for i, name := range all {
		if i/size == number-1 {
			want = append(want, name)
		}
	}
	var got []upstream.SecretName
	for _, m := range out.Secrets {
		got = append(got, m.SecretName)
		sys.sameMetadata(t, m.SecretName, m)
	}
	if !slices.Equal(got, want) || out.TotalCount != len(all) || out.Page != (upstream.Page{Number: number, Size: size}) {
		t.Fatalf("list: got %v of %d, want %v of %d", got, out.TotalCount, want, len(all))
	}
	rows, err := sys.store.ListTagResources(ctx, upstream.ListTagResourcesInput{SecretNames: modelNames})
	if err != nil {
		t.Fatal(err)
	}
	var wantRows []upstream.TagRow
	for _, name := range sys.model.names() {
		for _, tag := range sys.model.tags(name) {
			wantRows = append(wantRows, upstream.TagRow{SecretName: name, Tag: tag})
		}
	}
	if !slices.Equal(rows.Rows, wantRows) || rows.NextToken != "" {
		t.Fatalf("tag rows: got %v, want %v", rows.Rows, wantRows)
	}
}

// TestModel drives random sequences of operations through the store and the model and compares
// everything that can be observed, errors included.
func TestModel(t *testing.T) {
	sequences := "2000"
	if testing.Short() || raceDetector {
		sequences = "300"
	}
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		if err := f.Value.Set(sequences); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Value.Set(f.DefValue) }()
	}
	clock := newClock()
	systems := map[int]*system{}
	for _, limit := range []int{2, 4, 10} {
		sys := &system{clock: clock, opts: testOptions(t)}
		sys.opts.MaxVersions, sys.opts.Now = limit, clock.now
		sys.reopen(t)
		defer func() {
			if err := sys.store.Close(); err != nil {
				t.Error(err)
			}
			checkFile(t, sys.opts.Database)
		}()
		systems[limit] = sys
	}
	rapid.Check(t, func(t *rapid.T) {
		limit := oneOf(t, "limit", []int{2, 4, 10})
		sys := systems[limit]
		sys.model = &model{now: clock.now, maxVersions: limit, secrets: map[upstream.SecretName]*modelSecret{}}
		for _, name := range modelNames {
			_, err := sys.store.DeleteSecret(context.Background(), upstream.DeleteSecretInput{SecretName: name, ForceDeleteWithoutRecovery: true})
			if err != nil && !errors.Is(err, upstream.ErrNotFound) {
				t.Fatal(err)
			}
		}
		// Most sequences start with something to work on.
		first := upstream.CreateSecretInput{SecretName: "a", VersionID: "v1", SecretData: secret("one"), SecretDataType: upstream.DataTypeText}
		if _, err := sys.store.CreateSecret(context.Background(), first); err != nil {
			t.Fatal(err)
		}
		same(t, "create", nil, sys.model.create(first))
		t.Repeat(sys.actions())
		for _, name := range modelNames {
			sys.compare(t, name)
		}
		sys.compareLists(t)
	})
}
