package upstreamtest

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"secretagent/upstream"
)

var readingPromises = []promise{
	{"a read without version and stage returns ACSCurrent", func(t *suite) {
		t.create(app)
		t.put("v2")
		t.reads(upstream.SecretRef{SecretName: app}, "v2", upstream.ACSCurrent)
		v := t.read(upstream.SecretRef{SecretName: app})
		if v.SecretType != upstream.SecretTypeGeneric || v.SecretDataType != upstream.DataTypeText || v.CreateTime.IsZero() || v.Managed != nil {
			t.Errorf("type %q, data type %q, created %s, managed %v", v.SecretType, v.SecretDataType, v.CreateTime, v.Managed)
		}
	}},
	{"a read by stage returns the version that carries the label", func(t *suite) {
		t.create(app)
		t.put("v2")
		t.put("v3", "pending")
		t.marks(upstream.ACSCurrent, "v2")
		t.marks(upstream.ACSPrevious, "v1")
		t.marks("pending", "v3")
	}},
	{"a read by version returns it whatever its labels, also without any", func(t *suite) {
		t.create(app)
		t.put("v2")
		t.put("v3")
		t.reads(upstream.SecretRef{SecretName: app, VersionID: "v1"}, "v1")
	}},
	{"a read by version and stage returns the version when both agree", func(t *suite) {
		t.create(app)
		t.put("v2")
		t.reads(upstream.SecretRef{SecretName: app, VersionID: "v1", VersionStage: upstream.ACSPrevious}, "v1", upstream.ACSPrevious)
	}},
	{"a read is refused when version and stage disagree", func(t *suite) {
		t.create(app)
		t.put("v2")
		t.refused("read", only(t.get(upstream.SecretRef{SecretName: app, VersionID: "v1", VersionStage: upstream.ACSCurrent})), upstream.ErrInvalidParameter)
	}},
	{"an unknown secret, version or label is not found", func(t *suite) {
		t.create(app)
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
		t.create(app)
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
	{"an error names the operation and the secret", func(t *suite) {
		_, err := t.get(upstream.SecretRef{SecretName: missing})
		var e *upstream.Error
		if !errors.As(err, &e) || e.Op != "GetSecretValue" || e.Ref.SecretName != missing {
			t.Errorf("got %#v", e)
		}
	}},
	{"a failed read returns no value", func(t *suite) {
		t.create(app)
		v, err := t.get(upstream.SecretRef{SecretName: app, VersionID: "v9"})
		if err == nil || v.SecretData.Len() != 0 || v.VersionID != "" {
			t.Errorf("got version %q with %d bytes, %v", v.VersionID, v.SecretData.Len(), err)
		}
	}},
	{"values come back byte for byte", func(t *suite) {
		t.create(app)
		const awkward = "\"\\\n\r\t<&>%+ é数\u2028\U0001F511"
		for i, want := range []string{
			" ", "\n", "\x00", "{\"user\":\"root\",\"pwd\":\"a b*c~d+e/f=é&\"}", "trailing newline\n", "\ufeffbyte order mark",
			"a=b&c=d;e%20f+g", "<a href='x'>&amp;</a>", strings.Repeat("%", upstream.MaxSecretDataLen), strings.Repeat("\x01", upstream.MaxSecretDataLen),
			strings.Repeat("数", upstream.MaxSecretDataLen/3), strings.Repeat(awkward, upstream.MaxSecretDataLen/len(awkward)),
		} {
			id := upstream.VersionID(fmt.Sprintf("w%d", i))
			t.ok(fmt.Sprintf("put %.20q", want), only(t.m.PutSecretValue(t.Context(), upstream.PutSecretValueInput{SecretName: app, VersionID: id, SecretData: data(want)})))
			v, err := t.get(upstream.SecretRef{SecretName: app})
			t.ok(fmt.Sprintf("read %.20q", want), err)
			if got := string(v.SecretData.Reveal()); got != want {
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
	{"the first version carries ACSCurrent and nothing else", func(t *suite) {
		t.create(app)
		t.holds("v1 ACSCurrent")
		t.marks(upstream.ACSPrevious, "")
	}},
	{"the answer describes the secret", func(t *suite) {
		meta, err := t.m.CreateSecret(t.Context(), upstream.CreateSecretInput{SecretName: app, VersionID: "v1", SecretData: data("x")})
		t.ok("create", err)
		if meta.SecretName != app || meta.SecretType != upstream.SecretTypeGeneric || !strings.HasSuffix(meta.ARN, ":secret/"+string(app)) {
			t.Errorf("got %+v", meta)
		}
	}},
	{"a name that is taken is refused and the secret stays as it was", func(t *suite) {
		t.create(app)
		for _, value := range []string{"v1", "other"} {
			t.refused("create again", only(t.m.CreateSecret(t.Context(), upstream.CreateSecretInput{SecretName: app, VersionID: "v1", SecretData: data(value)})), upstream.ErrExists)
		}
		t.marks(upstream.ACSCurrent, "v1")
	}},
	{"description, tags and data type are kept", func(t *suite) {
		t.ok("create", only(t.m.CreateSecret(t.Context(), upstream.CreateSecretInput{
			SecretName: app, VersionID: "v1", SecretData: data("AQID"), SecretDataType: upstream.DataTypeBinary, SecretType: upstream.SecretTypeGeneric,
			Description: "数据库 \"main\" & more", Tags: []upstream.Tag{{Key: "env", Value: "dev"}, {Key: "empty"}},
		})))
		meta := t.describe(app, true)
		if meta.Description != "数据库 \"main\" & more" || !slices.Equal(sortedTags(meta.Tags), []upstream.Tag{{Key: "empty"}, {Key: "env", Value: "dev"}}) {
			t.Errorf("got %+v", meta)
		}
		v := t.read(upstream.SecretRef{SecretName: app})
		if v.SecretDataType != upstream.DataTypeBinary || string(v.SecretData.Reveal()) != "AQID" {
			t.Errorf("data type %q", v.SecretDataType)
		}
	}},
	{"a bad parameter is refused and nothing is created, nor listed", func(t *suite) {
		for _, c := range []struct {
			what    string
			mutate  func(in *upstream.CreateSecretInput)
			answers []error
		}{
			{"a name in the reserved folder", func(in *upstream.CreateSecretInput) { in.SecretName = "acs/mine" }, invalid},
			{"no version id", func(in *upstream.CreateSecretInput) { in.VersionID = "" }, invalid},
			{"no data", func(in *upstream.CreateSecretInput) { in.SecretData = upstream.SecretData{} }, invalid},
			{"data that is too long", func(in *upstream.CreateSecretInput) {
				in.SecretData = data(strings.Repeat("x", upstream.MaxSecretDataLen+1))
			}, invalid},
			{"data whose characters fit but whose bytes do not", func(in *upstream.CreateSecretInput) {
				in.SecretData = data(strings.Repeat("é", upstream.MaxSecretDataLen/2+1))
			}, invalid},
			{"data that is not UTF-8", func(in *upstream.CreateSecretInput) { in.SecretData = data("a\xff\xfeb") }, invalid},
			{"an unknown data type", func(in *upstream.CreateSecretInput) { in.SecretDataType = "json" }, invalid},
			{"an unknown secret type", func(in *upstream.CreateSecretInput) { in.SecretType = "Postgres" }, notForGenerics},
			{"rotation of a generic secret", func(in *upstream.CreateSecretInput) {
				in.EnableAutomaticRotation, in.RotationInterval = true, "7d"
			}, notForGenerics},
			{"a key that is not there", func(in *upstream.CreateSecretInput) { in.EncryptionKeyID = "key-that-is-not-there" }, []error{upstream.ErrKeyNotFound}},
			{"a description without end", func(in *upstream.CreateSecretInput) { in.Description = strings.Repeat("d", 20000) }, tooMuch},
			{"a tag without key", func(in *upstream.CreateSecretInput) { in.Tags = []upstream.Tag{{Value: "x"}} }, invalid},
			{"too many tags", func(in *upstream.CreateSecretInput) { in.Tags = manyTags(upstream.MaxTags + 1) }, tooMuch},
		} {
			in := upstream.CreateSecretInput{SecretName: app, VersionID: "v1", SecretData: data("x")}
			c.mutate(&in)
			t.refused(c.what, only(t.m.CreateSecret(t.Context(), in)), c.answers...)
		}
		out := t.list(upstream.ListSecretsInput{})
		if out.TotalCount != 0 {
			t.Errorf("%d secrets were created", out.TotalCount)
		}
	}},
	{"managed types are refused", func(t *suite) {
		for _, managed := range []string{"Rds", "Redis", "RAMCredentials", "ECS", "PolarDB"} {
			name := app
			if managed == "ECS" {
				name = "acs/ecs/app"
			}
			t.refused(managed, only(t.m.CreateSecret(t.Context(), upstream.CreateSecretInput{
				SecretName: name, VersionID: "v1", SecretData: data(`{"Accounts":[]}`), SecretType: managed, ExtendedConfig: "{}",
			})), notForGenerics...)
		}
	}},
	{"an error never shows the data", func(t *suite) {
		const marker = "MARKER-s3cr3t"
		t.create(app)
		for _, value := range []string{marker, marker + strings.Repeat("x", upstream.MaxSecretDataLen), marker + "\xff"} {
			_, err := t.m.CreateSecret(t.Context(), upstream.CreateSecretInput{SecretName: app, VersionID: "v1", SecretData: data(value)})
			if err == nil || strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), marker) {
				t.Errorf("creating: %v", err)
			}
			_, err = t.m.PutSecretValue(t.Context(), upstream.PutSecretValueInput{SecretName: app, VersionID: "v1", SecretData: data(value)})
			if err == nil || strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), marker) {
				t.Errorf("putting: %v", err)
			}
		}
	}},
}
