package upstreamtest

import (
	"fmt"
	"slices"
	"strings"

	"secretagent/upstream"
)

var readingPromises = []promise{
	{"a read without version and stage returns ACSCurrent", func(t *suite) {
		t.put("v2")
		t.reads(upstream.SecretRef{SecretName: app}, "v2", upstream.ACSCurrent)
		v := t.read(upstream.SecretRef{SecretName: app})
		if v.SecretType != upstream.SecretTypeGeneric || v.SecretDataType != upstream.DataTypeText || v.CreateTime.IsZero() || v.Managed != nil {
			t.Errorf("type %q, data type %q, created %s, managed %v", v.SecretType, v.SecretDataType, v.CreateTime, v.Managed)
		}
	}},
	{"a read by stage returns the version that carries the label", func(t *suite) {
		t.put("v2")
		t.put("v3", "pending")
		t.holds("v3 pending", "v2 ACSCurrent", "v1 ACSPrevious")
	}},
	{"a read by version returns it whatever its labels, also without any", func(t *suite) {
		t.putUpTo(3)
		t.reads(upstream.SecretRef{SecretName: app, VersionID: "v1"}, "v1")
	}},
	{"a read by version and stage returns the version, and is refused when the two disagree", func(t *suite) {
		t.put("v2")
		t.reads(upstream.SecretRef{SecretName: app, VersionID: "v1", VersionStage: upstream.ACSPrevious}, "v1", upstream.ACSPrevious)
		t.refused("read", only(t.get(upstream.SecretRef{SecretName: app, VersionID: "v1", VersionStage: upstream.ACSCurrent})), upstream.ErrInvalidParameter)
	}},
	{"an unknown secret, version or label is not found", func(t *suite) {
		for _, ref := range []upstream.SecretRef{
			{SecretName: "app"},
			{SecretName: "APP/DB"},
			{SecretName: app, VersionID: "v9"},
			{SecretName: app, VersionID: "V1"},
			{SecretName: app, VersionStage: "nowhere"},
			{SecretName: app, VersionStage: "acscurrent"},
			{SecretName: app, VersionStage: upstream.ACSPrevious},
			{SecretName: app, VersionID: "v9", VersionStage: upstream.ACSCurrent},
		} {
			t.refused(ref.String(), only(t.get(ref)), upstream.ErrNotFound)
		}
	}},
	{"a reference that is malformed is refused", func(t *suite) {
		for _, ref := range []upstream.SecretRef{
			{},
			{SecretName: "a b"},
			{SecretName: "app/db:ACSCurrent"},
			{SecretName: "数据"},
			{SecretName: upstream.SecretName(strings.Repeat("n", upstream.MaxSecretNameLen+1))},
			{SecretName: app, VersionID: "v 1"},
			{SecretName: app, VersionID: upstream.VersionID(strings.Repeat("v", upstream.MaxVersionIDLen+1))},
			{SecretName: app, VersionStage: "ACS Current"},
			{SecretName: app, VersionStage: upstream.VersionStage(strings.Repeat("s", upstream.MaxVersionStageLen+1))},
		} {
			t.refused(fmt.Sprintf("%.40q", ref.String()), only(t.get(ref)), invalid...)
		}
	}},
	{"a failed read returns no value", func(t *suite) {
		v, err := t.get(upstream.SecretRef{SecretName: app, VersionID: "v9"})
		if err == nil || v.SecretData.Len() != 0 || v.VersionID != "" {
			t.Errorf("got version %q with %d bytes, %v", v.VersionID, v.SecretData.Len(), err)
		}
	}},
	{"values come back byte for byte", func(t *suite) {
		const awkward = "\"\\\n\r\t<&>%+ é数\u2028\U0001F511"
		for i, want := range []string{
			" ", "\n", "\x00", "{\"user\":\"root\",\"pwd\":\"a b*c~d+e/f=é&\"}", "trailing newline\n", "\ufeffbyte order mark",
			"a=b&c=d;e%20f+g", "<a href='x'>&amp;</a>", strings.Repeat("%", upstream.MaxSecretDataLen), strings.Repeat("\x01", upstream.MaxSecretDataLen),
			strings.Repeat("数", upstream.MaxSecretDataLen/3), strings.Repeat(awkward, upstream.MaxSecretDataLen/len(awkward)),
		} {
			id := upstream.VersionID(fmt.Sprintf("w%d", i))
			t.ok(fmt.Sprintf("put %.20q", want), t.putValue(id, want))
			if got := string(t.read(upstream.SecretRef{SecretName: app}).SecretData.Reveal()); got != want {
				t.Errorf("%.20q of %d bytes came back as %.20q of %d bytes", want, len(want), got, len(got))
			}
		}
	}},
	{"identifiers of every allowed character and full length work", func(t *suite) {
		const alphabet = "ABCXYZabcxyz0189_/+=.@-"
		name := upstream.SecretName(alphabet + strings.Repeat("n", upstream.MaxSecretNameLen-len(alphabet)))
		id := upstream.VersionID(alphabet + strings.Repeat("v", upstream.MaxVersionIDLen-len(alphabet)))
		stage := upstream.VersionStage(alphabet + strings.Repeat("s", upstream.MaxVersionStageLen-len(alphabet)))
		t.create(name)
		t.ok("put", only(t.m.PutSecretValue(t.Context(), upstream.PutSecretValueInput{
			SecretName: name, VersionID: id, SecretData: data("x"), VersionStages: []upstream.VersionStage{stage},
		})))
		v := t.read(upstream.SecretRef{SecretName: name, VersionID: id, VersionStage: stage})
		if v.SecretName != name || v.VersionID != id || !slices.Equal(v.VersionStages, []upstream.VersionStage{stage}) {
			t.Errorf("got %s version %s labels %v", v.SecretName, v.VersionID, v.VersionStages)
		}
	}},
}

var creatingPromises = []promise{
	{"the first version carries ACSCurrent and nothing else, and the name is taken", func(t *suite) {
		for _, value := range []string{"v1", "other"} {
			t.refused("create again", t.createWith(app, value), upstream.ErrExists)
		}
		t.holds("v1 ACSCurrent")
	}},
	{"description, tags and data type are kept", func(t *suite) {
		const name, description = "app/main", "数据库 \"main\" & more"
		meta, err := t.m.CreateSecret(t.Context(), upstream.CreateSecretInput{
			SecretName: name, VersionID: "v1", SecretData: data("AQID"), SecretDataType: upstream.DataTypeBinary,
			Description: description, Tags: []upstream.Tag{{Key: "env", Value: "dev"}, {Key: "empty"}},
		})
		t.ok("create", err)
		if meta.SecretName != name || meta.SecretType != upstream.SecretTypeGeneric || !strings.HasSuffix(meta.ARN, ":secret/"+name) {
			t.Errorf("the answer is %+v", meta)
		}
		if t.describe(name).Description != description {
			t.Errorf("described as %q", t.describe(name).Description)
		}
		t.tagged(name, upstream.Tag{Key: "empty"}, upstream.Tag{Key: "env", Value: "dev"})
		if v := t.read(upstream.SecretRef{SecretName: name}); v.SecretDataType != upstream.DataTypeBinary || string(v.SecretData.Reveal()) != "AQID" {
			t.Errorf("data type %q", v.SecretDataType)
		}
	}},
	{"a secret for which no key was named tells of none, whatever protects it", func(t *suite) {
		t.put("v2")
		if key := t.describe(app).EncryptionKeyID; key != "" {
			t.Errorf("the key is %s", key)
		}
	}},
	{"a bad parameter is refused and nothing is created, nor listed", func(t *suite) {
		for _, c := range []struct {
			what    string
			mutate  func(in *upstream.CreateSecretInput)
			answers []error
		}{
			{"a name in the reserved folder", func(in *upstream.CreateSecretInput) { in.SecretName = "acs/mine" }, invalid},
			{"a key that is not there", func(in *upstream.CreateSecretInput) { in.EncryptionKeyID = "key-that-is-not-there" }, []error{upstream.ErrKeyNotFound}},
			{"a description without end", func(in *upstream.CreateSecretInput) { in.Description = strings.Repeat("d", 20000) }, tooMuch},
			{"a tag without key", func(in *upstream.CreateSecretInput) { in.Tags = []upstream.Tag{{Value: "x"}} }, invalid},
			{"too many tags", func(in *upstream.CreateSecretInput) { in.Tags = manyTags(upstream.MaxTags + 1) }, tooMuch},
		} {
			in := upstream.CreateSecretInput{SecretName: "app/new", VersionID: "v1", SecretData: data("x")}
			c.mutate(&in)
			t.refused(c.what, only(t.m.CreateSecret(t.Context(), in)), c.answers...)
		}
		for what, v := range badVersions {
			in := upstream.CreateSecretInput{SecretName: "app/new", VersionID: v.VersionID, SecretData: v.SecretData, SecretDataType: v.SecretDataType}
			t.refused(what, only(t.m.CreateSecret(t.Context(), in)), invalid...)
		}
		if names := t.names(100); !slices.Equal(names, one) {
			t.Errorf("the secrets are %v", names)
		}
	}},
	{"an error never shows the data", func(t *suite) {
		const marker = "MARKER-s3cr3t"
		for _, value := range []string{marker, marker + strings.Repeat("x", upstream.MaxSecretDataLen), marker + "\xff"} {
			for _, err := range []error{t.createWith(app, value), t.putValue("v1", value)} {
				if err == nil || strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), marker) {
					t.Errorf("got %v", err)
				}
			}
		}
	}},
}

// badVersions are versions that no secret can have.
var badVersions = map[string]upstream.PutSecretValueInput{
	"no version id":           {SecretData: data("x")},
	"a version id with space": {VersionID: "v 2", SecretData: data("x")},
	"no data":                 {VersionID: "v2"},
	"data that is too long":   {VersionID: "v2", SecretData: data(strings.Repeat("x", upstream.MaxSecretDataLen+1))},
	"too many bytes":          {VersionID: "v2", SecretData: data(strings.Repeat("é", upstream.MaxSecretDataLen/2+1))},
	"data that is not UTF-8":  {VersionID: "v2", SecretData: data("a\xff\xfeb\xc3\x28")},
	"an unknown data type":    {VersionID: "v2", SecretData: data("x"), SecretDataType: "base64"},
}
