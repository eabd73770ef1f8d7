package builtin

import (
	"cmp"
	"slices"

	"secretagent/upstream"
)

// versionSet is the versions of one secret and the labels on them. It knows the rules and
// nothing else: no storage, no time. A method that returns an error may have changed the set;
// the caller drops it then.
//
// A label marks exactly one version because it has room for one; a version carries as many
// labels as point to it.
type versionSet struct {
	versions []version // in order of creation, oldest first
	labels   []label   // sorted by stage, each stage once
}

type version struct {
	id      upstream.VersionID
	created int64  // Unix seconds
	keyID   uint32 // the key its value is sealed with
	binary  bool   // the data type: binary or text
}

type label struct {
	stage  upstream.VersionStage
	holder upstream.VersionID
}

// add stores a new version, attaches stages to it, and then drops the oldest versions without
// a label until at most limit are left. It returns the ids of the dropped ones.
func (s *versionSet) add(v version, stages []upstream.VersionStage, limit int) (evicted []upstream.VersionID, err error) {
	s.versions = append(s.versions, v)
	if err := s.attachAll(stages, v.id); err != nil {
		return nil, err
	}
	for len(s.versions) > limit {
		oldest := slices.IndexFunc(s.versions, func(v version) bool { return len(s.stagesOf(v.id)) == 0 })
		if oldest < 0 {
			return nil, Errorf(upstream.ErrLimitExceeded,
				"each of the %d versions carries a label; remove a label first, so that the oldest version can go", limit)
		}
		evicted = append(evicted, s.versions[oldest].id)
		s.versions = slices.Delete(s.versions, oldest, oldest+1)
	}
	return evicted, nil
}

// relabel makes stages the labels of version id: they are attached, and custom labels that are
// not among them are removed from it. Built-in labels are never removed.
func (s *versionSet) relabel(id upstream.VersionID, stages []upstream.VersionStage) (changed bool, err error) {
	before := slices.Clone(s.labels)
	s.labels = slices.DeleteFunc(s.labels, func(l label) bool {
		return l.holder == id && !l.stage.BuiltIn() && !slices.Contains(stages, l.stage)
	})
	err = s.attachAll(stages, id)
	return !slices.Equal(before, s.labels), err
}

// move carries out the three forms of UpdateSecretVersionStage: attach to a version, remove
// from a version, or both. changed is false when the label is already there.
func (s *versionSet) move(stage upstream.VersionStage, to, from upstream.VersionID) (changed bool, err error) {
	for _, id := range []upstream.VersionID{to, from} {
		if id != "" && s.find(id) < 0 {
			return false, Errorf(upstream.ErrNotFound, "the secret has no version %q", id)
		}
	}
	holder, held := s.holder(stage)
	if from != "" && (!held || holder != from) {
		return false, upstream.InvalidParameter("RemoveFromVersion", "that version does not carry the label "+string(stage))
	}
	if to == "" {
		if stage.BuiltIn() {
			return false, errBuiltInRemoved(stage)
		}
		s.labels = slices.DeleteFunc(s.labels, func(l label) bool { return l.stage == stage })
		return true, nil
	}
	if held && holder == to {
		return false, nil
	}
	s.attach(stage, to)
	return true, s.checkLabels()
}

func errBuiltInRemoved(stage upstream.VersionStage) error {
	return upstream.InvalidParameter("VersionStage", string(stage)+" can be moved but not removed; name the version that gets it in MoveToVersion")
}

// attachAll puts all of stages on version id.
func (s *versionSet) attachAll(stages []upstream.VersionStage, id upstream.VersionID) error {
	if slices.Contains(stages, upstream.ACSCurrent) {
		s.attach(upstream.ACSCurrent, id) // first, so that ACSPrevious stays there where asked for
	}
	for _, stage := range stages {
		s.attach(stage, id)
	}
	return s.checkLabels()
}

// attach puts stage on version id, off whatever held it. When ACSCurrent moves, the version
// that held it receives ACSPrevious.
func (s *versionSet) attach(stage upstream.VersionStage, id upstream.VersionID) {
	old, held := s.holder(stage)
	if held && old == id {
		return
	}
	s.set(stage, id)
	if held && stage == upstream.ACSCurrent {
		s.set(upstream.ACSPrevious, old)
	}
}

func (s *versionSet) set(stage upstream.VersionStage, id upstream.VersionID) {
	i, held := s.search(stage)
	if held {
		s.labels[i].holder = id
	} else {
		s.labels = slices.Insert(s.labels, i, label{stage, id})
	}
}

func (s *versionSet) checkLabels() error {
	if len(s.labels) > upstream.MaxVersionStages {
		return Errorf(upstream.ErrLimitExceeded,
			"a secret has at most %d labels, ACSCurrent and ACSPrevious included; remove one first", upstream.MaxVersionStages)
	}
	return nil
}

// holder returns the version that stage marks.
func (s *versionSet) holder(stage upstream.VersionStage) (upstream.VersionID, bool) {
	if i, held := s.search(stage); held {
		return s.labels[i].holder, true
	}
	return "", false
}

// stagesOf returns the labels of version id, sorted.
func (s *versionSet) stagesOf(id upstream.VersionID) []upstream.VersionStage {
	var stages []upstream.VersionStage
	for _, l := range s.labels {
		if l.holder == id {
			stages = append(stages, l.stage)
		}
	}
	return stages
}

// find returns the index of version id, -1 when there is none.
func (s *versionSet) find(id upstream.VersionID) int {
	return slices.IndexFunc(s.versions, func(v version) bool { return v.id == id })
}

// resolve returns the version that ref means. ref has its defaults filled in.
func (s *versionSet) resolve(ref upstream.SecretRef) (*version, error) {
	id := ref.VersionID
	if ref.VersionStage != "" {
		holder, held := s.holder(ref.VersionStage)
		switch {
		case !held:
			return nil, Errorf(upstream.ErrNotFound, "no version of the secret carries the label %s", ref.VersionStage)
		case id != "" && s.find(id) >= 0 && id != holder:
			return nil, upstream.InvalidParameter("VersionStage", "it marks another version than VersionId names; give one of the two")
		case id == "":
			id = holder
		}
	}
	i := s.find(id)
	if i < 0 {
		return nil, Errorf(upstream.ErrNotFound, "the secret has no version %q", id)
	}
	return &s.versions[i], nil
}

func (s *versionSet) search(stage upstream.VersionStage) (int, bool) {
	return slices.BinarySearchFunc(s.labels, stage, func(l label, stage upstream.VersionStage) int { return cmp.Compare(l.stage, stage) })
}
