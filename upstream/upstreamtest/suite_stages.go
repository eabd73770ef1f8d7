package upstreamtest

import (
	"fmt"
	"slices"
	"strings"

	"secretagent/upstream"
)

var puttingPromises = []promise{
	{"a new version takes ACSCurrent and the old one becomes ACSPrevious", func(t *suite) {
		v := t.put("v2")
		if v.VersionID != "v2" || !slices.Equal(v.VersionStages, []upstream.VersionStage{upstream.ACSCurrent}) {
			t.Errorf("the answer is %+v", v)
		}
		t.holds("v2 ACSCurrent", "v1 ACSPrevious")
		t.put("v3")
		t.holds("v3 ACSCurrent", "v2 ACSPrevious", "v1")
	}},
	{"what held ACSPrevious keeps only its other labels", func(t *suite) {
		t.ok("label v1", t.move("blue", "v1", ""))
		t.put("v2")
		t.holds("v2 ACSCurrent", "v1 ACSPrevious blue")
		t.put("v3")
		t.holds("v3 ACSCurrent", "v2 ACSPrevious", "v1 blue")
	}},
	{"the same version with the same data changes nothing, the first one included", func(t *suite) {
		t.put("v1")
		t.holds("v1 ACSCurrent")
		t.putUpTo(3)
		v := t.put("v2")
		if v.VersionID != "v2" || !slices.Equal(v.VersionStages, []upstream.VersionStage{upstream.ACSPrevious}) {
			t.Errorf("the answer is %+v", v)
		}
		t.holds("v3 ACSCurrent", "v2 ACSPrevious", "v1")
	}},
	{"the same version with the same data and labels keeps its own, or has these where that is emulated", func(t *suite) {
		t.putUpTo(3)
		for _, c := range []struct {
			put   upstream.VersionID
			named []upstream.VersionStage
			holds []string
		}{
			{"v2", []upstream.VersionStage{upstream.ACSCurrent, "blue"}, []string{"v3 ACSPrevious", "v2 ACSCurrent blue", "v1"}},
			{"v2", []upstream.VersionStage{"green"}, []string{"v3 ACSPrevious", "v2 ACSCurrent green", "v1"}},
			{"v2", nil, []string{"v3 ACSPrevious", "v2 ACSCurrent green", "v1"}},
			{"v1", []upstream.VersionStage{upstream.ACSPrevious, "green"}, []string{"v3", "v2 ACSCurrent", "v1 ACSPrevious green"}},
			{"v2", []upstream.VersionStage{upstream.ACSCurrent}, []string{"v3", "v2 ACSCurrent", "v1 ACSPrevious green"}},
			{"v1", []upstream.VersionStage{upstream.ACSCurrent}, []string{"v3", "v2 ACSPrevious", "v1 ACSCurrent"}},
		} {
			if !t.emulate.PutMovesStages {
				c.holds = []string{"v3 ACSCurrent", "v2 ACSPrevious", "v1"}
			}
			v := t.put(c.put, c.named...)
			t.holds(c.holds...)
			if i := slices.IndexFunc(t.all(), func(o upstream.SecretVersion) bool { return o.VersionID == c.put }); !slices.Equal(v.VersionStages, t.all()[i].VersionStages) {
				t.Errorf("put %s: the answer has the labels %v", c.put, v.VersionStages)
			}
		}
		t.refused("other data", t.putValue("v2", "other"), upstream.ErrExists)
		if t.emulate.PutMovesStages {
			in := upstream.PutSecretValueInput{SecretName: app, VersionID: "v3", SecretData: data("v3"), VersionStages: []upstream.VersionStage{"1", "2", "3", "4", "5", "6", "7"}}
			t.refused("a ninth label", only(t.m.PutSecretValue(t.Context(), in)), upstream.ErrLimitExceeded)
			t.holds("v3", "v2 ACSPrevious", "v1 ACSCurrent")
		}
	}},
	{"the same version with other data is refused and nothing changes", func(t *suite) {
		t.put("v2")
		for _, in := range []upstream.PutSecretValueInput{
			{SecretData: data("other")},
			{SecretData: data("v1 ")},
			{SecretData: data("v1"), SecretDataType: upstream.DataTypeBinary},
			{SecretData: data("other"), VersionStages: []upstream.VersionStage{"blue"}},
		} {
			in.SecretName, in.VersionID = app, "v1"
			t.refused("put", only(t.m.PutSecretValue(t.Context(), in)), upstream.ErrExists)
		}
		t.holds("v2 ACSCurrent", "v1 ACSPrevious")
	}},
	{"with custom labels only, ACSCurrent and ACSPrevious stay", func(t *suite) {
		t.put("v2")
		v := t.put("v3", "pending", "blue")
		if !slices.Equal(v.VersionStages, []upstream.VersionStage{"blue", "pending"}) {
			t.Errorf("the labels of the answer are %v", v.VersionStages)
		}
		t.holds("v3 blue pending", "v2 ACSCurrent", "v1 ACSPrevious")
		t.put("v4", "pending")
		t.holds("v4 pending", "v3 blue", "v2 ACSCurrent", "v1 ACSPrevious")
	}},
	{"all labels that are listed end on the new version, whatever their order", func(t *suite) {
		t.put("v2", upstream.ACSPrevious, upstream.ACSCurrent)
		t.holds("v2 ACSCurrent ACSPrevious", "v1")
		t.put("v3", upstream.ACSPrevious)
		t.holds("v3 ACSPrevious", "v2 ACSCurrent", "v1")
		t.put("v4", upstream.ACSCurrent, "green")
		t.holds("v4 ACSCurrent green", "v3", "v2 ACSPrevious", "v1")
	}},
	{"a bad parameter is refused and nothing changes", func(t *suite) {
		for what, in := range badVersions {
			in.SecretName = app
			t.refused(what, only(t.m.PutSecretValue(t.Context(), in)), invalid...)
		}
		for _, stages := range [][]upstream.VersionStage{{}, {""}, {"a b"}} {
			in := upstream.PutSecretValueInput{SecretName: app, VersionID: "v2", SecretData: data("v2"), VersionStages: stages}
			t.refused(fmt.Sprintf("labels %q", stages), only(t.m.PutSecretValue(t.Context(), in)), invalid...)
		}
		t.holds("v1 ACSCurrent")
	}},
}

var stagingPromises = []promise{
	{"moving ACSCurrent makes its old holder ACSPrevious", func(t *suite) {
		t.put("v2")
		t.put("v3", "pending")
		t.ok("move", t.move(upstream.ACSCurrent, "v3", ""))
		t.holds("v3 ACSCurrent pending", "v2 ACSPrevious", "v1")
	}},
	{"moving ACSCurrent to the holder of ACSPrevious swaps the two", func(t *suite) {
		t.put("v2")
		for range 2 {
			t.ok("move to v1", t.move(upstream.ACSCurrent, "v1", "v2"))
			t.holds("v2 ACSPrevious", "v1 ACSCurrent")
			t.ok("move to v2", t.move(upstream.ACSCurrent, "v2", ""))
			t.holds("v2 ACSCurrent", "v1 ACSPrevious")
		}
	}},
	{"moving a label to the version that has it changes nothing", func(t *suite) {
		t.put("v2")
		t.ok("move ACSCurrent", t.move(upstream.ACSCurrent, "v2", ""))
		t.ok("move ACSPrevious", t.move(upstream.ACSPrevious, "v1", ""))
		t.holds("v2 ACSCurrent", "v1 ACSPrevious")
	}},
	{"ACSPrevious moves alone", func(t *suite) {
		t.putUpTo(3)
		t.ok("move", t.move(upstream.ACSPrevious, "v1", ""))
		t.holds("v3 ACSCurrent", "v2", "v1 ACSPrevious")
		t.ok("move back", t.move(upstream.ACSPrevious, "v2", "v1"))
		t.holds("v3 ACSCurrent", "v2 ACSPrevious", "v1")
	}},
	{"a custom label is created, moved and removed", func(t *suite) {
		t.put("v2")
		t.ok("create", t.move("blue", "v1", ""))
		t.holds("v2 ACSCurrent", "v1 ACSPrevious blue")
		t.ok("move without naming the holder", t.move("blue", "v2", ""))
		t.holds("v2 ACSCurrent blue", "v1 ACSPrevious")
		t.ok("move", t.move("blue", "v1", "v2"))
		t.holds("v2 ACSCurrent", "v1 ACSPrevious blue")
		t.ok("remove", t.move("blue", "", "v1"))
		t.holds("v2 ACSCurrent", "v1 ACSPrevious")
		t.refused("read blue", only(t.get(upstream.SecretRef{SecretName: app, VersionStage: "blue"})), upstream.ErrNotFound)
	}},
	{"a built-in label cannot be removed", func(t *suite) {
		t.put("v2")
		t.refused("ACSCurrent", t.move(upstream.ACSCurrent, "", "v2"), upstream.ErrInvalidParameter)
		t.refused("ACSPrevious", t.move(upstream.ACSPrevious, "", "v1"), upstream.ErrInvalidParameter)
		t.holds("v2 ACSCurrent", "v1 ACSPrevious")
	}},
	{"a label cannot be taken from a version that does not carry it", func(t *suite) {
		t.put("v2", "blue")
		t.refused("remove", t.move("blue", "", "v1"), upstream.ErrInvalidParameter)
		t.refused("remove a label that is nowhere", t.move("green", "", "v1"), upstream.ErrInvalidParameter)
		t.refused("move", t.move("blue", "v2", "v1"), upstream.ErrInvalidParameter)
		t.refused("move ACSCurrent", t.move(upstream.ACSCurrent, "v1", "v2"), upstream.ErrInvalidParameter)
		t.holds("v2 blue", "v1 ACSCurrent")
	}},
	{"neither a version to move to nor one to remove from is a missing parameter", func(t *suite) {
		t.refused("custom", t.move("blue", "", ""), upstream.ErrMissingParameter)
		t.refused("built in", t.move(upstream.ACSCurrent, "", ""), upstream.ErrMissingParameter)
	}},
	{"an unknown version is not found", func(t *suite) {
		t.refused("move", t.move("blue", "v9", ""), upstream.ErrNotFound)
		t.refused("move ACSCurrent", t.move(upstream.ACSCurrent, "v9", ""), upstream.ErrNotFound)
		t.refused("move from v1", t.move(upstream.ACSCurrent, "v9", "v1"), upstream.ErrNotFound)
		t.holds("v1 ACSCurrent")
	}},
	{"a malformed label or version is refused", func(t *suite) {
		t.refused("no label", t.move("", "v1", ""), invalid...)
		t.refused("label with a space", t.move("a b", "v1", ""), invalid...)
		t.refused("label too long", t.move(upstream.VersionStage(strings.Repeat("s", upstream.MaxVersionStageLen+1)), "v1", ""), invalid...)
		t.refused("version with a space", t.move("blue", "v 1", ""), invalid...)
	}},
}

var limitPromises = []promise{
	{"an eleventh version drops the oldest one without a label", func(t *suite) {
		t.putUpTo(maxVersions)
		t.ok("keep v1", t.move("keep", "v1", ""))
		t.put("v11")
		t.holds("v11 ACSCurrent", "v10 ACSPrevious", "v9", "v8", "v7", "v6", "v5", "v4", "v3", "v1 keep")
		t.put("v12")
		t.holds("v12 ACSCurrent", "v11 ACSPrevious", "v10", "v9", "v8", "v7", "v6", "v5", "v4", "v1 keep")
		t.refused("read v2", only(t.get(upstream.SecretRef{SecretName: app, VersionID: "v2"})), upstream.ErrNotFound)
	}},
	{"the version that loses its last label to the new one may be dropped", func(t *suite) {
		t.put("v2")
		for _, label := range []upstream.VersionStage{"a", "b", "c", "d", "e"} {
			t.put(upstream.VersionID("v-"+label), label)
		}
		for i := 8; i <= maxVersions; i++ {
			t.put(upstream.VersionID(fmt.Sprintf("v%d", i)), "moving")
		}
		t.holds("v10 moving", "v9", "v8", "v-e e", "v-d d", "v-c c", "v-b b", "v-a a", "v2 ACSCurrent", "v1 ACSPrevious")
		t.put("v11")
		t.holds("v11 ACSCurrent", "v10 moving", "v9", "v8", "v-e e", "v-d d", "v-c c", "v-b b", "v-a a", "v2 ACSPrevious")
	}},
	{"a dropped version id is free again", func(t *suite) {
		t.putUpTo(maxVersions + 2)
		t.ok("put v1 again", t.putValue("v1", "other"))
		if v := t.read(upstream.SecretRef{SecretName: app}); v.VersionID != "v1" || string(v.SecretData.Reveal()) != "other" {
			t.Errorf("got version %s", v.VersionID)
		}
	}},
	{"a secret has at most eight labels, built-in ones included", func(t *suite) {
		t.put("v2")
		for _, label := range []upstream.VersionStage{"a", "b", "c", "d", "e", "f"} {
			t.ok("label "+string(label), t.move(label, "v1", ""))
		}
		t.refused("ninth label", t.move("g", "v1", ""), upstream.ErrLimitExceeded)
		in := upstream.PutSecretValueInput{SecretName: app, VersionID: "v3", SecretData: data("v3"), VersionStages: []upstream.VersionStage{upstream.ACSCurrent, "g"}}
		t.refused("ninth label with a new version", only(t.m.PutSecretValue(t.Context(), in)), upstream.ErrLimitExceeded)
		t.holds("v2 ACSCurrent", "v1 ACSPrevious a b c d e f")
		t.ok("move one of the eight", t.move("a", "v2", "v1"))
		t.put("v3")
		t.ok("remove one", t.move("b", "", "v1"))
		t.ok("add one", t.move("g", "v3", ""))
		t.holds("v3 ACSCurrent g", "v2 ACSPrevious a", "v1 c d e f")
	}},
}
