package builtin

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"secretagent/upstream"
)

// set reads "v1:ACSPrevious v2:ACSCurrent,green v3" as versions, oldest first, and labels.
func set(text string) *versionSet {
	s := &versionSet{}
	for _, field := range strings.Fields(text) {
		id, stages, _ := strings.Cut(field, ":")
		s.versions = append(s.versions, version{id: upstream.VersionID(id)})
		for _, stage := range strings.Split(stages, ",") {
			if stage != "" {
				s.set(upstream.VersionStage(stage), upstream.VersionID(id))
			}
		}
	}
	return s
}

func (s *versionSet) String() string {
	var fields []string
	for _, v := range s.versions {
		var stages []string
		for _, stage := range s.stagesOf(v.id) {
			stages = append(stages, string(stage))
		}
		fields = append(fields, strings.TrimSuffix(string(v.id)+":"+strings.Join(stages, ","), ":"))
	}
	return strings.Join(fields, " ")
}

// brokenRules says which rules a set breaks.
func brokenRules(s *versionSet, limit int) (problems []string) {
	if _, ok := s.holder(upstream.ACSCurrent); !ok {
		problems = append(problems, "no version is current")
	}
	if len(s.versions) > limit {
		problems = append(problems, fmt.Sprintf("it has %d versions", len(s.versions)))
	}
	if len(s.labels) > upstream.MaxVersionStages {
		problems = append(problems, fmt.Sprintf("it has %d labels", len(s.labels)))
	}
	for i, l := range s.labels {
		if s.find(l.holder) < 0 {
			problems = append(problems, fmt.Sprintf("label %s is on no version", l.stage))
		}
		if i > 0 && s.labels[i-1].stage >= l.stage {
			problems = append(problems, fmt.Sprintf("label %s is there twice", l.stage))
		}
	}
	for i, v := range s.versions {
		if s.find(v.id) != i {
			problems = append(problems, fmt.Sprintf("version %s is there twice", v.id))
		}
	}
	return problems
}

func TestAdd(t *testing.T) {
	tests := []struct {
		name    string
		before  string
		stages  string
		limit   int
		want    string // with the new version n
		evicted string
		err     error
	}{
		{"the first version", "", "ACSCurrent", 10, "n:ACSCurrent", "", nil},
		{"the old current becomes previous", "v1:ACSCurrent", "ACSCurrent", 10, "v1:ACSPrevious n:ACSCurrent", "", nil},
		{"the old previous keeps its other labels", "v1:ACSPrevious,green v2:ACSCurrent", "ACSCurrent", 10, "v1:green v2:ACSPrevious n:ACSCurrent", "", nil},
		{"a pending version moves nothing", "v1:ACSPrevious v2:ACSCurrent", "pending", 10, "v1:ACSPrevious v2:ACSCurrent n:pending", "", nil},
		{"a custom label moves along", "v1:ACSCurrent,green", "ACSCurrent,green", 10, "v1:ACSPrevious n:ACSCurrent,green", "", nil},
		{"both built-in labels stay on the new version", "v1:ACSCurrent", "ACSPrevious,ACSCurrent", 10, "v1 n:ACSCurrent,ACSPrevious", "", nil},
		{"previous alone simply moves", "v1:ACSPrevious v2:ACSCurrent", "ACSPrevious", 10, "v1 v2:ACSCurrent n:ACSPrevious", "", nil},
		{"the same label twice counts once", "v1:ACSCurrent", "a,a", 10, "v1:ACSCurrent n:a", "", nil},
		{"the oldest unlabelled version goes", "v1 v2 v3:ACSPrevious v4:ACSCurrent", "ACSCurrent", 4, "v2 v3 v4:ACSPrevious n:ACSCurrent", "v1", nil},
		{"labelled old versions stay", "v1:keep v2:ACSPrevious v3:ACSCurrent", "ACSCurrent", 3, "v1:keep v3:ACSPrevious n:ACSCurrent", "v2", nil},
		{"a lowered limit takes effect", "v1 v2 v3 v4:ACSPrevious v5:ACSCurrent", "ACSCurrent", 3, "v4 v5:ACSPrevious n:ACSCurrent", "v1 v2 v3", nil},
		{"nothing can go", "v1:ACSPrevious v2:ACSCurrent", "a", 2, "", "", upstream.ErrLimitExceeded},
		{"the ninth label", "v1:a,b,c,d,e,f v2:ACSPrevious v3:ACSCurrent", "g", 10, "", "", upstream.ErrLimitExceeded},
		{"the eighth label", "v1:a,b,c,d,e v2:ACSPrevious v3:ACSCurrent", "f", 10, "v1:a,b,c,d,e v2:ACSPrevious v3:ACSCurrent n:f", "", nil},
		{"previous counts when it appears", "v1:ACSCurrent,a,b,c,d,e,f,g", "ACSCurrent", 10, "", "", upstream.ErrLimitExceeded},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := set(test.before)
			var stages []upstream.VersionStage
			for _, stage := range strings.Split(test.stages, ",") {
				stages = append(stages, upstream.VersionStage(stage))
			}
			evicted, err := s.add(version{id: "n"}, stages, test.limit)
			if !errors.Is(err, test.err) {
				t.Fatalf("got error %v, want %v", err, test.err)
			}
			if err != nil {
				return
			}
			if got := s.String(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if got := strings.Trim(fmt.Sprint(evicted), "[]"); got != test.evicted {
				t.Errorf("evicted %q, want %q", got, test.evicted)
			}
			for _, problem := range brokenRules(s, test.limit) {
				t.Error(problem)
			}
		})
	}
}

func TestMove(t *testing.T) {
	tests := []struct {
		name            string
		before          string
		stage, to, from string
		want            string
		err             error
	}{
		{"a new label", "v1:ACSCurrent", "green", "v1", "", "v1:ACSCurrent,green", nil},
		{"a label leaves its holder", "v1:green v2:ACSCurrent", "green", "v2", "", "v1 v2:ACSCurrent,green", nil},
		{"current back to the previous version swaps", "v1:ACSPrevious v2:ACSCurrent", "ACSCurrent", "v1", "", "v1:ACSCurrent v2:ACSPrevious", nil},
		{"current to a third version", "v1 v2:ACSPrevious v3:ACSCurrent", "ACSCurrent", "v1", "v3", "v1:ACSCurrent v2 v3:ACSPrevious", nil},
		{"current to where it is", "v1:ACSPrevious v2:ACSCurrent", "ACSCurrent", "v2", "", "v1:ACSPrevious v2:ACSCurrent", nil},
		{"previous leaves current alone", "v1:ACSPrevious v2:ACSCurrent", "ACSPrevious", "v2", "", "v1 v2:ACSCurrent,ACSPrevious", nil},
		{"a custom label goes", "v1:ACSCurrent,green", "green", "", "v1", "v1:ACSCurrent", nil},
		{"from one to the other", "v1:green v2:ACSCurrent", "green", "v2", "v1", "v1 v2:ACSCurrent,green", nil},
		{"a built-in label is not removed", "v1:ACSCurrent", "ACSCurrent", "", "v1", "", upstream.ErrInvalidParameter},
		{"not the holder", "v1:green v2:ACSCurrent", "green", "v1", "v2", "", upstream.ErrInvalidParameter},
		{"a label that is nowhere is not removed", "v1:ACSCurrent", "green", "", "v1", "", upstream.ErrInvalidParameter},
		{"to an unknown version", "v1:ACSCurrent", "green", "v9", "", "", upstream.ErrNotFound},
		{"from an unknown version", "v1:ACSCurrent", "green", "v1", "v9", "", upstream.ErrNotFound},
		{"the ninth label", "v1:ACSCurrent,a,b,c,d,e,f,g", "h", "v1", "", "", upstream.ErrLimitExceeded},
		{"moving at the limit is allowed", "v1:ACSPrevious,a,b,c,d,e,f v2:ACSCurrent", "ACSCurrent", "v1", "", "v1:ACSCurrent,a,b,c,d,e,f v2:ACSPrevious", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := set(test.before)
			changed, err := s.move(upstream.VersionStage(test.stage), upstream.VersionID(test.to), upstream.VersionID(test.from))
			if !errors.Is(err, test.err) {
				t.Fatalf("got error %v, want %v", err, test.err)
			}
			if err != nil {
				return
			}
			if got := s.String(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if changed != (test.want != test.before) {
				t.Errorf("changed is %v, from %q to %q", changed, test.before, test.want)
			}
		})
	}
}

func TestResolve(t *testing.T) {
	s := set("v1:ACSPrevious v2:ACSCurrent,green v3")
	tests := []struct {
		id, stage, want string
		err             error
	}{
		{"", "ACSCurrent", "v2", nil},
		{"", "green", "v2", nil},
		{"v3", "", "v3", nil},
		{"v1", "ACSPrevious", "v1", nil},
		{"v1", "ACSCurrent", "", upstream.ErrInvalidParameter},
		{"v9", "ACSCurrent", "", upstream.ErrNotFound},
		{"v9", "", "", upstream.ErrNotFound},
		{"", "red", "", upstream.ErrNotFound},
		{"v1", "red", "", upstream.ErrNotFound},
	}
	for _, test := range tests {
		v, err := s.resolve(upstream.SecretRef{VersionID: upstream.VersionID(test.id), VersionStage: upstream.VersionStage(test.stage)})
		if !errors.Is(err, test.err) || err == nil && string(v.id) != test.want {
			t.Errorf("version %q, stage %q: got %v, %v", test.id, test.stage, v, err)
		}
	}
	if got := s.stagesOf("v2"); !slices.IsSorted(got) || len(got) != 2 {
		t.Errorf("stages of v2: %v", got)
	}
}
