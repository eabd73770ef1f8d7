package agent

import (
	"fmt"
	"testing"

	"secretagent/agent/endpoint"
	"secretagent/cache"
	"secretagent/upstream"
)

func TestStatusListsDeclaredSecretsFirstWhenThereAreTooMany(t *testing.T) {
	var entries []cache.EntryStatus
	for i := range maxStatusSecrets + 7 {
		name := upstream.SecretName(fmt.Sprintf("s%05d", i))
		entries = append(entries, cache.EntryStatus{Ref: upstream.SecretRef{SecretName: name}, Pinned: i >= maxStatusSecrets})
	}
	mayNot := entries[3].Ref.SecretName
	list, omitted := secretStatus(entries, endpoint.Viewer{May: func(n upstream.SecretName) bool { return n != mayNot }})
	if len(list) != maxStatusSecrets || omitted != 6 {
		t.Fatalf("%d listed, %d omitted", len(list), omitted)
	}
	declared := 0
	for i, s := range list {
		if s.SecretName == mayNot {
			t.Errorf("%s is not for this caller", s.SecretName)
		}
		if s.Declared {
			declared++
		}
		if i > 0 && list[i-1].SecretName >= s.SecretName {
			t.Errorf("%s comes after %s", s.SecretName, list[i-1].SecretName)
		}
	}
	if declared != 7 {
		t.Errorf("%d of 7 declared secrets are listed", declared)
	}
}

// TestStatusHasNoComputedNames shows what a template computes only where its name is known from
// elsewhere, and counts the rest of what the caller may read.
func TestStatusHasNoComputedNames(t *testing.T) {
	ref := func(name upstream.SecretName, stage upstream.VersionStage, computed bool) cache.EntryStatus {
		return cache.EntryStatus{Ref: upstream.SecretRef{SecretName: name, VersionStage: stage, Computed: computed}}
	}
	entries := []cache.EntryStatus{
		ref("declared", upstream.ACSCurrent, false), ref("declared", upstream.ACSPrevious, true),
		ref("hidden", upstream.ACSCurrent, true), ref("of-others", upstream.ACSCurrent, true),
	}
	files := []FileStatus{{Versions: []SecretVersion{
		{SecretName: "spelled"}, {SecretName: "declared", Computed: true}, {SecretName: "hidden", Computed: true},
	}}}
	named, unnamed := namedOnly(entries, files, func(n upstream.SecretName) bool { return n != "of-others" })
	if len(named) != 1 || named[0].Ref.VersionStage != upstream.ACSCurrent || unnamed != 2 {
		t.Errorf("%d unnamed, and %+v", unnamed, named)
	}
	if v := files[0].Versions; len(v) != 2 || v[0].SecretName != "spelled" || v[1].SecretName != "declared" {
		t.Errorf("versions: %+v", v)
	}
}
