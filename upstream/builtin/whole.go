package builtin

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"time"

	"secretagent/upstream"
)

// Secret is a secret with everything that is known of it, on its way from one place to another; see [Transfer].
type Secret struct {
	SecretName      upstream.SecretName
	Description     string
	EncryptionKeyID string // as its creator named it
	DKMSInstanceID  string
	Policy          string         // empty: the default one
	Tags            []upstream.Tag // sorted by key

	// Of the times only whole seconds are kept.
	CreateTime, UpdateTime time.Time
	PlannedDeleteTime      time.Time // zero while it is not scheduled for deletion

	Versions []Version // oldest first

	Withheld string // why there are no versions here; empty where there are

	key uint32 // of the keyring, which the secret is to be sealed with; 0: the primary one
}

// Version is a version of a [Secret].
type Version struct {
	upstream.SecretVersion // with its labels, sorted
	SecretData             upstream.SecretData
	SecretDataType         string
}

// find returns the version of that id, nil when there is none.
func (s *Secret) find(id upstream.VersionID) *Version {
	if i := slices.IndexFunc(s.Versions, func(v Version) bool { return v.VersionID == id }); i >= 0 {
		return &s.Versions[i]
	}
	return nil
}

// size returns about how much memory the secret takes.
func (s *Secret) size() int {
	n := 512
	for i := range s.Versions {
		n += 128 + s.Versions[i].SecretData.Len()
	}
	return n
}

// is reports whether both are the same, whatever they are sealed with.
func (s *Secret) is(other *Secret) bool { return s.PartOf(other) && other.PartOf(s) }

// PartOf reports whether s is other but for versions and labels that it lacks: what is left where a transfer of
// other was interrupted.
func (s *Secret) PartOf(other *Secret) bool {
	return s.SecretName == other.SecretName && s.Description == other.Description && s.EncryptionKeyID == other.EncryptionKeyID &&
		s.DKMSInstanceID == other.DKMSInstanceID && s.Policy == other.Policy && slices.Equal(s.Tags, other.Tags) &&
		s.CreateTime.Equal(other.CreateTime) && s.UpdateTime.Equal(other.UpdateTime) && s.PlannedDeleteTime.Equal(other.PlannedDeleteTime) &&
		!slices.ContainsFunc(s.Versions, func(v Version) bool {
			of := other.find(v.VersionID)
			return of == nil || !v.partOf(of)
		})
}

// partOf is that of a secret.
func (v *Version) partOf(of *Version) bool {
	lacks := func(stage upstream.VersionStage) bool { return !slices.Contains(of.VersionStages, stage) }
	return v.SecretDataType == of.SecretDataType && v.CreateTime.Equal(of.CreateTime) && v.SecretData.Equal(of.SecretData) &&
		!slices.ContainsFunc(v.VersionStages, lacks)
}

// Names returns the names of all secrets in order, those included that are scheduled for deletion. It reads all
// records: what lists show is told of a shared storage by and by.
func (s *Store) Names(ctx context.Context) ([]upstream.SecretName, error) {
	return answer(ctx, s.view, call{op: "Names"}, func(t *tx) (names []upstream.SecretName, err error) {
		err = t.eachStored(func(name upstream.SecretName, r *record) error {
			if !r.gone(t.now) {
				names = append(names, detached(name))
			}
			return ctx.Err()
		})
		return names, err
	})
}

// Secrets has fn called with all secrets whose names begin with prefix, by name, as they were at one moment; those
// included that are scheduled for deletion. An error ends the sequence, of which nothing is valid after fn. It may be
// called more than once, each time for another moment.
func (s *Store) Secrets(ctx context.Context, prefix string, fn func(iter.Seq2[*Secret, error]) error) error {
	return s.view(ctx, call{op: "Secrets"}, func(t *tx) error {
		return fn(func(yield func(*Secret, error) bool) {
			for secret, err := range t.secrets(prefix) {
				if err = cmp.Or(ctx.Err(), err); !yield(secret, err) || err != nil {
					return
				}
			}
		})
	})
}

// secrets walks over records and values at the same time: both are in the order of names. A value that no record
// tells of is none: it was not there yet, or it is there no more.
func (t *tx) secrets(prefix string) iter.Seq2[*Secret, error] {
	return func(yield func(*Secret, error) bool) {
		records, values := t.Scan(Records, []byte(prefix)), t.Scan(Values, []byte(prefix))
		key, sealed, err := values.Next()
		for err == nil {
			var recordKey, sealedRecord []byte
			recordKey, sealedRecord, err = records.Next()
			if err != nil || recordKey == nil || !bytes.HasPrefix(recordKey, []byte(prefix)) {
				break
			}
			name := detached(upstream.SecretName(recordKey))
			var r *record
			if r, err = t.openRecord(name, sealedRecord); err != nil {
				break
			}
			for own := valueKey(name, ""); err == nil && key != nil && bytes.Compare(key, own) < 0; {
				key, _, err = values.Next()
			}
			found := map[upstream.VersionID][]byte{}
			for own := valueKey(name, ""); err == nil && bytes.HasPrefix(key, own); key, sealed, err = values.Next() {
				found[upstream.VersionID(key[len(own):])] = sealed
			}
			if err != nil {
				break
			}
			secret, opened := t.whole(name, r, func(v *version) ([]byte, error) { return found[v.id], nil })
			if opened != nil {
				err = opened
				break
			}
			if r.gone(t.now) {
				continue
			}
			if !yield(secret, nil) {
				return
			}
		}
		if err != nil {
			yield(nil, err)
		}
	}
}

// Lookup returns those of the named secrets that exist, scheduled for deletion or not, as they were at one moment.
func (s *Store) Lookup(ctx context.Context, names []upstream.SecretName) (map[upstream.SecretName]*Secret, error) {
	return answer(ctx, s.view, call{op: "Lookup"}, func(t *tx) (map[upstream.SecretName]*Secret, error) {
		records := map[upstream.SecretName]*record{}
		var values [][]byte
		err := t.eachOf(ctx, slices.Values(names), func(name upstream.SecretName, r *record) error {
			records[name] = r
			for i := range r.versions {
				values = append(values, valueKey(name, r.versions[i].id))
			}
			return nil
		})
		if err == nil {
			err = t.prefetch(Values, values)
		}
		found := make(map[upstream.SecretName]*Secret, len(records))
		for name, r := range records {
			if err != nil {
				break
			}
			found[name], err = t.whole(name, r, func(v *version) ([]byte, error) { return t.Get(Values, t.join(string(name), string(v.id))) })
		}
		return found, err
	})
}

// whole returns a secret of which sealed returns the values.
func (t *tx) whole(name upstream.SecretName, r *record, sealed func(*version) ([]byte, error)) (*Secret, error) {
	s := &Secret{
		SecretName: name, Description: r.description, EncryptionKeyID: r.encryptionKeyID, DKMSInstanceID: r.dkmsInstanceID, Policy: r.policy,
		Tags: r.tags, CreateTime: unixTime(r.created), UpdateTime: unixTime(r.updated), key: r.key,
	}
	if r.pending() {
		s.PlannedDeleteTime = unixTime(r.plannedDelete)
	}
	for i := range r.versions {
		v := &r.versions[i]
		value, err := sealed(v)
		if err != nil {
			return nil, err
		}
		data, err := t.openValue(name, v, value)
		if err != nil {
			return nil, err
		}
		s.Versions = append(s.Versions, Version{r.version(v), upstream.NewSecretData(data), v.dataType()})
	}
	return s, nil
}

// Fit returns a secret as it can be kept here, and what is wrong where it cannot.
func (s *Store) Fit(in *Secret) (kept *Secret, note string) {
	if in.Withheld != "" {
		return nil, in.Withheld
	}
	if err := in.validate(); err != nil {
		return nil, err.Error()
	}
	return in, ""
}

// validate checks what can be told without the storage.
func (s *Secret) validate() error {
	first := upstream.CreateSecretInput{SecretName: s.SecretName, Description: s.Description, Tags: s.Tags}
	labels := map[upstream.VersionStage]bool{}
	for i := range s.Versions {
		v := &s.Versions[i]
		first.VersionID, first.SecretData, first.SecretDataType = v.VersionID, v.SecretData, v.SecretDataType
		if err := first.Validate(); err != nil {
			return err
		}
		if s.find(v.VersionID) != v {
			return upstream.InvalidParameter("VersionId", "two versions have the same one")
		}
		for _, stage := range v.VersionStages {
			if err := stage.Validate(); err != nil {
				return err
			}
			if labels[stage] {
				return upstream.InvalidParameter("VersionStage", "two versions have the same one")
			}
			labels[stage] = true
		}
	}
	if !labels[upstream.ACSCurrent] || len(labels) > upstream.MaxVersionStages {
		return upstream.InvalidParameter("VersionStages", fmt.Sprintf("one must be ACSCurrent, and there must be %d at most", upstream.MaxVersionStages))
	}
	return nil
}

// putAtOnce is how many versions a transaction of [Store.PutSecret] writes into a shared storage; those with labels
// are always in the first one. With a hundred others to remove, that is what a transaction takes.
const putAtOnce = 20

// PutSecret stores a secret as a whole, with its versions, labels and times. Unless it may replace, it fails with
// [upstream.ErrExists] where a secret of that name is another one; one that [Secret] could be a part of is completed.
//
// Where one transaction has no room for it, the versions that have labels come with the first one: whoever reads the
// secret then reads what it will be, and only versions without a label appear by and by. Otherwise it is done as a whole
// or not at all. The limit of versions is not applied: the next PutSecretValue does that.
func (s *Store) PutSecret(ctx context.Context, in *Secret, replace bool) error {
	c := call{"PutSecret", secretRef(in.SecretName), in.validate()}
	for done := 0; done < len(in.Versions) || done == 0; {
		n, err := answer(ctx, s.write, c, func(t *tx) (int, error) { return t.putPart(in, done, replace) })
		if err != nil {
			return err
		}
		done = n
	}
	return nil
}

// inOrder returns the versions in the order in which they are written: those with labels first.
func (s *Secret) inOrder() []*Version {
	all := make([]*Version, len(s.Versions))
	for i := range s.Versions {
		all[i] = &s.Versions[i]
	}
	slices.SortStableFunc(all, func(a, b *Version) int {
		return cmp.Compare(min(1, len(b.VersionStages)), min(1, len(a.VersionStages)))
	})
	return all
}

// putPart writes the next versions of a secret of which the first ones were written, in their order, and returns
// how many are.
func (t *tx) putPart(in *Secret, done int, replace bool) (int, error) {
	old, err := t.find(in.SecretName)
	if err != nil {
		return 0, err
	}
	versions := in.inOrder()
	if done > 0 && (old == nil || !bytes.Equal(encodeRecord(nil, old), encodeRecord(nil, t.part(in, versions[:done], old)))) {
		return 0, Errorf(upstream.ErrUnavailable, "others have changed the secret %q meanwhile; repeat it", in.SecretName)
	}
	if done == 0 {
		if err := t.makeWay(in, replace); err != nil {
			return 0, err
		}
		old = nil
	}
	n := len(versions)
	if t.place.Shared {
		n = min(n, done+putAtOnce)
	}
	r := t.part(in, versions[:n], old)
	if err := t.claimKey(r.key); err != nil {
		return 0, err
	}
	for _, v := range versions[done:n] {
		if err := t.putValue(in.SecretName, r, &r.versions[r.find(v.VersionID)], v.SecretData.Reveal()); err != nil {
			return 0, err
		}
	}
	t.change(in.SecretName)
	return n, t.putRecord(in.SecretName, r)
}

// makeWay removes the values of the secret that in takes the place of, if that may be.
func (t *tx) makeWay(in *Secret, replace bool) error {
	old, err := t.stored(in.SecretName)
	if old == nil || err != nil {
		return err
	}
	if !replace && !old.gone(t.now) {
		there, err := t.whole(in.SecretName, old, func(v *version) ([]byte, error) { return t.Get(Values, t.join(string(in.SecretName), string(v.id))) })
		if err != nil {
			return err
		}
		if !there.PartOf(in) {
			return Errorf(upstream.ErrExists, "the secret %q already exists and is another one", in.SecretName)
		}
	}
	return t.remove(in.SecretName, old)
}

// part returns the record of a secret with some of its versions. before, which may be nil, tells which keys seal those
// that are there.
func (t *tx) part(in *Secret, versions []*Version, before *record) *record {
	seconds := func(t time.Time) int64 {
		if t.IsZero() {
			return 0
		}
		return t.Unix()
	}
	r := &record{
		created: seconds(in.CreateTime), updated: seconds(in.UpdateTime), plannedDelete: seconds(in.PlannedDeleteTime),
		description: in.Description, encryptionKeyID: in.EncryptionKeyID, dkmsInstanceID: in.DKMSInstanceID, policy: in.Policy, tags: in.Tags,
	}
	if t.keys.aead(in.key) != nil {
		r.key = in.key
	}
	for i := range in.Versions { // in the order of their creation
		from := &in.Versions[i]
		if !slices.Contains(versions, from) {
			continue
		}
		v := version{id: from.VersionID, created: seconds(from.CreateTime), binary: from.SecretDataType == upstream.DataTypeBinary}
		if before != nil {
			if i := before.find(v.id); i >= 0 {
				v.keyID = before.versions[i].keyID
			}
		}
		r.versions = append(r.versions, v)
		for _, stage := range from.VersionStages {
			r.set(stage, v.id)
		}
	}
	return r
}

// Seeds returns the names whose seed is done, in order.
func (s *Store) Seeds(ctx context.Context) ([]upstream.SecretName, error) {
	done, err := s.seeded(ctx)
	var names []upstream.SecretName
	for name := range done {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, err
}

// SetSeeds notes that the seeds of these names are done and, unless they are only added, that no others are.
func (s *Store) SetSeeds(ctx context.Context, names []upstream.SecretName, add bool) error {
	done, err := s.seeded(ctx)
	if err != nil {
		return err
	}
	set := func(names []upstream.SecretName, fn func(t *tx, name []byte) error) error {
		for some := range slices.Chunk(names, putAtOnce) {
			err := s.write(ctx, call{op: "SetSeeds"}, func(t *tx) error {
				for _, name := range some {
					t.writes++
					if err := fn(t, []byte(name)); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	}
	var more, fewer []upstream.SecretName
	for _, name := range names {
		if !done[name] {
			more = append(more, name)
		}
		delete(done, name)
	}
	for name := range done {
		if !add {
			fewer = append(fewer, name)
		}
	}
	if err := set(more, func(t *tx, name []byte) error { return t.w.Put(Seeds, name, nil) }); err != nil {
		return err
	}
	return set(fewer, func(t *tx, name []byte) error { return t.w.Delete(Seeds, name) })
}
