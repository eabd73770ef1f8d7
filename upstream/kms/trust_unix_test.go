//go:build unix

package kms_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"secretagent/upstream/kms"
)

// Ensure that root takes neither a credential nor an authority from where another user could put
// one: whoever does decides which account, or which server, the secrets come from.
func TestFilesOfAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give files away")
	}
	clean(t)
	const stranger = 65533
	dir := t.TempDir()
	app := filepath.Join(dir, "app")
	if err := errors.Join(os.Mkdir(app, 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"id": "MARKER", "secret": "MARKER", "token": "MARKER", "ca.pem": string(fakeCA.pem),
		"config.json": `{"current": "p", "profiles": [{"name": "p", "mode": "AK", "access_key_id": "MARKER", "access_key_secret": "MARKER"}]}`,
	} {
		write(t, app, name, text)
	}
	get := func(o kms.CredentialOptions) error {
		s, err := kms.NewCredentials(o)
		if err != nil {
			return err
		}
		defer s.Close()
		_, err = s.Credential(t.Context())
		return err
	}
	for name, read := range map[string]func() error{
		"key": func() error {
			return get(kms.CredentialOptions{Type: "access_key", AccessKeyIDFile: app + "/id", AccessKeySecretFile: app + "/secret"})
		},
		"session": func() error {
			return get(kms.CredentialOptions{Type: "sts", AccessKeyIDFile: app + "/id", AccessKeySecretFile: app + "/secret", SecurityTokenFile: app + "/token"})
		},
		"profile": func() error { return get(kms.CredentialOptions{Type: "profile", ProfileFile: app + "/config.json"}) },
		"default": func() error {
			t.Setenv("ALIBABA_CLOUD_CONFIG_FILE", app+"/config.json")
			return get(kms.CredentialOptions{})
		},
		"authority": func() error {
			return kms.Options{Endpoints: []kms.Endpoint{{Region: "cn-hangzhou", CAFile: app + "/ca.pem"}}}.Validate()
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, uid := range []int{0, stranger} {
				if err := os.Chown(app, uid, uid); err != nil {
					t.Fatal(err)
				}
				err := read()
				if uid == 0 && err != nil {
					t.Errorf("in a folder of root: %v", err)
				}
				if uid == stranger && (err == nil || !strings.Contains(err.Error(), app+" belongs to uid 65533") || strings.Contains(err.Error(), "MARKER")) {
					t.Errorf("in a folder of another user: %v", err)
				}
			}
		})
	}
}
