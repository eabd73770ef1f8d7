package credentials_test

import (
	"strings"
	"testing"

	"secretagent/agent/credentials"
)

func TestWhichSecretACredentialIs(t *testing.T) {
	opts := credentials.Options{Units: []credentials.Unit{
		{Name: "app.service", Secrets: []credentials.Secret{{Name: "app/*"}, {Name: "shared/tls"}, {Credential: "old", Name: "app/prod/db:ACSPrevious"}}},
		{Name: "other.service", Secrets: []credentials.Secret{{Credential: "db", Name: "other/db"}, {Name: "acs:kms:cn-hangzhou:1234:secret/x"}}},
		{Name: "any.service", Secrets: []credentials.Secret{{Credential: "*", Name: "*"}}},
		{Name: "app@*.service", Secrets: []credentials.Secret{{Name: "app/%i/*"}}},
		{Name: "app@b*.service", Secrets: []credentials.Secret{{Name: "b/*"}}},
		{Name: "app@blue.service", Secrets: []credentials.Secret{{Credential: "db", Name: "exact/%i"}}},
	}}
	if err := opts.Validate(); err != nil && !strings.Contains(err.Error(), "this system has no systemd") {
		t.Fatal(err)
	}
	for _, tt := range []struct{ unit, credential, want string }{
		{"app.service", "db", "app/db"},
		{"app.service", "tls", "shared/tls"}, // its own rule comes before the star's
		{"app.service", "old", "app/prod/db:ACSPrevious"},
		{"app.service", "db_x.y", "app/db_x.y"},
		{"other.service", "db", "other/db"},
		{"other.service", "x", "acs:kms:cn-hangzhou:1234:secret/x"},
		{"other.service", "tls", ""},
		{"any.service", "db", "db"},
		{"app@green.service", "db", "app/green/db"},
		{"app@blau.service", "db", "b/db"}, // the longest pattern
		{"app@blue.service", "db", "exact/blue"},
		{"app@blue.service", "tls", ""}, // rules of several are not joined
		{`app@x\x2dy.service`, "db", ""},
		{"app@x:ACSPrevious.service", "db", ""},
		{"app@.service", "db", ""},
		{"none.service", "db", ""},
		{"xapp.service", "db", ""},
	} {
		got, err := opts.AsUnit(tt.unit, tt.credential)
		if tt.want == "" {
			if err == nil {
				t.Errorf("%s, %s: is %s, want none", tt.unit, tt.credential, got)
			}
		} else if err != nil || got != tt.want {
			t.Errorf("%s, %s: is %s, %v; want %s", tt.unit, tt.credential, got, err, tt.want)
		}
	}
}

func TestRulesThatAreRefused(t *testing.T) {
	one := func(unit string, secrets ...credentials.Secret) []credentials.Unit {
		return []credentials.Unit{{Name: unit, Secrets: secrets}}
	}
	for _, tt := range []struct {
		units []credentials.Unit
		want  string
	}{
		{one("app", credentials.Secret{Name: "app/*"}), "units.app: must be the whole name of a unit, as in app.service"},
		{one("a/b.service", credentials.Secret{Name: "app/*"}), "must be the name of a unit"},
		{one("app.service"), "units.app.service: must not be empty"},
		{one("app.service", credentials.Secret{Name: "app/*/*"}), "units.app.service[0]: app/*/*: must have one star at most"},
		{one("app.service", credentials.Secret{Name: "app/?"}), "units.app.service[0]: app/?: must be for a credential"},
		{one("app.service", credentials.Secret{Name: "app/"}), "must be for a credential"},
		{one("app.service", credentials.Secret{Name: "ä/*"}), "must be the name of a secret"},
		{one("app.service", credentials.Secret{Name: "app/*"}, credentials.Secret{Name: "b/*"}), "units.app.service[1]: b/*: stands for the credential *, as app/* does"},
		{one("app.service", credentials.Secret{Name: "a/db"}, credentials.Secret{Name: "b/db"}), "stands for the credential db, as a/db does"},
		{one("app.service", credentials.Secret{Credential: "db", Name: "app/*"}), "units.app.service.db: app/*: must have no star"},
		{one("app.service", credentials.Secret{Credential: "*", Name: "app/db"}), "must have a star"},
		{one("app.service", credentials.Secret{Credential: "a/b", Name: "app/db"}), "must be for a credential whose name"},
		{one("app.service", credentials.Secret{Name: "app/%i"}), "must not have %i"},
		{one("app.service", credentials.Secret{Credential: "db", Name: ""}), "must be the name of a secret"},
	} {
		_, err := credentials.New(nil, credentials.Options{Units: tt.units})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %v, want: %s", tt.units, err, tt.want)
		}
	}
}
