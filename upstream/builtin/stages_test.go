package builtin

import (
	"errors"
	"fmt"
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

// TestAdd: what the conformance suite cannot bring about, with its limit of ten versions.
func TestAdd(t *testing.T) {
	for _, test := range []struct {
		name    string
		before  string
		stages  []upstream.VersionStage
		limit   int
		want    string // with the new version n; empty: refused
		evicted string
	}{
		{"the same label twice counts once", "v1:ACSCurrent", []upstream.VersionStage{"a", "a"}, 10, "v1:ACSCurrent n:a", ""},
		{"labelled old versions stay", "v1:keep v2:ACSPrevious v3:ACSCurrent", []upstream.VersionStage{"ACSCurrent"}, 3, "v1:keep v3:ACSPrevious n:ACSCurrent", "v2"},
		{"a lowered limit takes effect", "v1 v2 v3 v4:ACSPrevious v5:ACSCurrent", []upstream.VersionStage{"ACSCurrent"}, 3, "v4 v5:ACSPrevious n:ACSCurrent", "v1 v2 v3"},
		{"nothing can go", "v1:ACSPrevious v2:ACSCurrent", []upstream.VersionStage{"a"}, 2, "", ""},
		{"previous counts when it appears", "v1:ACSCurrent,a,b,c,d,e,f,g", []upstream.VersionStage{"ACSCurrent"}, 10, "", ""},
	} {
		s := set(test.before)
		evicted, err := s.add(version{id: "n"}, test.stages, test.limit)
		if test.want == "" {
			if !errors.Is(err, upstream.ErrLimitExceeded) {
				t.Errorf("%s: got error %v", test.name, err)
			}
			continue
		}
		if got := strings.Trim(fmt.Sprint(evicted), "[]"); err != nil || s.String() != test.want || got != test.evicted {
			t.Errorf("%s: got %q without %q, %v; want %q without %q", test.name, s, got, err, test.want, test.evicted)
		}
		for _, problem := range brokenRules(s, test.limit) {
			t.Errorf("%s: %s", test.name, problem)
		}
	}
}
