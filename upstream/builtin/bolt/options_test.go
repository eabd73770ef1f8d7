package bolt

import (
	"os"
	"slices"
	"strings"
	"testing"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/upstreamtest"
)

func TestBadOptions(t *testing.T) {
	dir := t.TempDir()
	seed := func(change func(*upstream.CreateSecretInput)) func(*Options) {
		in := upstream.CreateSecretInput{SecretName: "demo/db", VersionID: "v1", SecretData: secret("x")}
		change(&in)
		return func(o *Options) {
			o.Seed = append(o.Seed, upstream.CreateSecretInput{SecretName: "a", VersionID: "v1", SecretData: secret("x")}, in)
		}
	}
	for _, test := range []struct {
		name   string
		mutate func(*Options)
		want   string
	}{
		{"no database", func(o *Options) { o.Database = "" }, "database: must be set: the path of the database file"},
		{"no keyring", func(o *Options) { o.Keyring = "" }, "keyring: must be set"},
		{"the same file", func(o *Options) { o.Keyring = dir + "/./db" }, "keyring: " + dir + "/./db: must be another file than database"},
		{"a folder", func(o *Options) { o.Database = dir }, "database: " + dir + ": must be a regular file"},
		{"a keyring that is none", func(o *Options) { o.Keyring = dir }, "keyring: "},
		{"one version", func(o *Options) { o.MaxVersions = 1 }, "maxVersions: 1: must be in the range 2 to 100"},
		{"too many versions", func(o *Options) { o.MaxVersions = 101 }, "maxVersions: 101: "},
		{"an instance that is none", func(o *Options) { o.Emulate.InstanceID = "kst 1" }, "emulate.instanceId: kst 1: must have 1 to 256 characters"},
		{"a key that is none", func(o *Options) { o.Emulate.Keys = []string{"alias/a", ""} }, "emulate.keys[1]: must have 1 to 256 characters"},
		{"a key of the keyring", func(o *Options) { o.Emulate.Keys = []string{"4294967295"} }, "emulate.keys[0]: 4294967295: must not be a decimal number"},
		{"a seed of the service", seed(func(in *upstream.CreateSecretInput) { in.SecretName = "acs/x" }), "seed[1].name: acs/x: names that start with acs/ belong to the service"},
		{"a seed without version", seed(func(in *upstream.CreateSecretInput) { in.VersionID = "" }), "seed[1].versionId: must not be empty"},
		{"an empty seed", seed(func(in *upstream.CreateSecretInput) { in.SecretData = upstream.SecretData{} }), "seed[1].data: must have 1 to 30720 bytes, these are 0"},
		{"a seed that is not text", seed(func(in *upstream.CreateSecretInput) { in.SecretData = secret("\xff") }), "seed[1].data: it is not valid UTF-8"},
		{"a seed with a long description", seed(func(in *upstream.CreateSecretInput) { in.Description = strings.Repeat("x", 257) }), "seed[1]: "},
	} {
		opts := Options{Database: dir + "/db", Options: builtin.Options{Keyring: dir + "/keys"}}
		test.mutate(&opts)
		err := opts.Validate()
		if problems, ok := err.(upstream.OptionErrors); !ok || len(problems) != 1 || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%s: got %v", test.name, err)
		}
		if _, openErr := Open(opts); openErr == nil || err != nil && openErr.Error() != err.Error() {
			t.Errorf("%s: Open answers %v", test.name, openErr)
		}
	}
	// All problems at once.
	if problems, _ := (Options{Options: builtin.Options{MaxVersions: -1}}).Validate().(upstream.OptionErrors); len(problems) != 3 {
		t.Errorf("got %v", problems)
	}
	must(t, Options{Database: dir + "/db", Options: builtin.Options{Keyring: dir + "/keys"}}.Validate())
	if files, err := os.ReadDir(dir); err != nil || len(files) != 0 {
		t.Errorf("created: %v, %v", files, err)
	}
}

// TestSeed creates a seed once for each database and name, whatever has become of the secret.
func TestSeed(t *testing.T) {
	var log upstreamtest.Buffer
	opts := testOptions(t)
	opts.Logger = log.Logger()
	s := mustOpen(t, opts)
	mustCreate(t, s, "demo/own", "v1", "own")
	s.Close()
	seed := func(names ...string) *Store {
		opts.Seed = nil
		for _, name := range names {
			opts.Seed = append(opts.Seed, upstream.CreateSecretInput{SecretName: upstream.SecretName(name), VersionID: "v1", SecretData: secret("seed")})
		}
		return mustOpen(t, opts)
	}
	s = seed("demo/own", "demo/changed", "demo/planned", "demo/forced")
	wantValue(t, s, "demo/own", "own") // it was there
	wantValue(t, s, "demo/forced", "seed")
	mustPut(t, s, "demo/changed", "v2", "own")
	mustDelete(t, s, "demo/planned", 7)
	forceDelete(t, s, "demo/forced")
	forceDelete(t, s, "demo/own")
	late := upstream.CreateSecretInput{SecretName: "demo/late"}
	if names, err := s.Unseeded(t.Context(), append(opts.Seed, late)); err != nil || !slices.Equal(names, []upstream.SecretName{"demo/late"}) {
		t.Errorf("the next seed may create %v, %v", names, err)
	}
	s.Close()
	s = seed("demo/own", "demo/changed", "demo/planned", "demo/forced", "demo/late")
	wantValue(t, s, "demo/changed", "own")
	wantValue(t, s, "demo/late", "seed")
	for name, want := range map[string]error{"demo/own": upstream.ErrNotFound, "demo/forced": upstream.ErrNotFound, "demo/planned": upstream.ErrPendingDeletion} {
		_, err := get(s, name)
		wantErr(t, err, want)
	}
	if n := strings.Count(log.String(), "msg=seeded"); n != 4 {
		t.Errorf("the log tells of %d seeds: %s", n, log.String())
	}
	wantErr(t, s.Seed(t.Context(), []upstream.CreateSecretInput{{SecretName: "a b"}}), upstream.ErrInvalidParameter)
}
