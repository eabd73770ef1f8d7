package bolt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
)

// The files that a re-executed test binary writes to instead of testing.
const (
	childDatabase = "SECRETAGENT_BUILTIN_TEST_DATABASE"
	childKeyring  = "SECRETAGENT_BUILTIN_TEST_KEYRING"
)

func TestMain(m *testing.M) {
	if database := os.Getenv(childDatabase); database != "" {
		fmt.Fprintln(os.Stderr, childWrites(database, os.Getenv(childKeyring)))
		os.Exit(1) // it is killed, or has failed
	}
	// A database that broke down cannot be closed in full, see [Store.Close].
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("go.etcd.io/bbolt.(*DB).Close"))
}

// testOptions are options for files in a folder of the test's own.
func testOptions(tb testing.TB) Options {
	dir := tb.TempDir()
	return Options{
		Database: filepath.Join(dir, "data", "secrets.db"),
		Options:  builtin.Options{Keyring: filepath.Join(dir, "keys", "keyring.json")},
	}
}

// mustOpen opens a built-in backend that is closed, and its file checked, when the test ends.
func mustOpen(tb testing.TB, opts Options) *Store {
	tb.Helper()
	s, err := Open(opts)
	must(tb, err)
	tb.Cleanup(func() {
		wantErr(tb, s.Close(), nil)
		checkFile(tb, opts.Database)
	})
	return s
}

// reopen closes a built-in backend and opens it again.
func reopen(tb testing.TB, s *Store) *Store {
	tb.Helper()
	must(tb, s.Close())
	return mustOpen(tb, s.opts)
}

// checkFile reports what is wrong with the structure of a database that nobody has open.
func checkFile(tb testing.TB, path string) {
	tb.Helper()
	content := readFile(tb, path)
	wantErr(tb, verifyPages(bytes.NewReader(content), int64(len(content))), nil)
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// only returns the error of a call that has an answer too.
func only[T any](_ T, err error) error { return err }

func readFile(tb testing.TB, path string) []byte {
	tb.Helper()
	content, err := os.ReadFile(path)
	must(tb, err)
	return content
}

// exists reports whether there is something at path.
func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func mustCreate(tb testing.TB, s *Store, name, id, data string) {
	tb.Helper()
	_, err := s.CreateSecret(context.Background(), upstream.CreateSecretInput{
		SecretName: upstream.SecretName(name), VersionID: upstream.VersionID(id), SecretData: secret(data),
	})
	must(tb, err)
}

func mustPut(tb testing.TB, s *Store, name, id, data string, stages ...upstream.VersionStage) {
	tb.Helper()
	_, err := s.PutSecretValue(context.Background(), upstream.PutSecretValueInput{
		SecretName: upstream.SecretName(name), VersionID: upstream.VersionID(id), SecretData: secret(data), VersionStages: stages,
	})
	must(tb, err)
}

func mustDelete(tb testing.TB, s *Store, name string, days int) time.Time {
	tb.Helper()
	at, err := s.DeleteSecret(context.Background(), upstream.DeleteSecretInput{SecretName: upstream.SecretName(name), RecoveryWindowInDays: days})
	must(tb, err)
	return at
}

func forceDelete(tb testing.TB, s *Store, name string) {
	tb.Helper()
	_, err := s.DeleteSecret(context.Background(), upstream.DeleteSecretInput{SecretName: upstream.SecretName(name), ForceDeleteWithoutRecovery: true})
	must(tb, err)
}

func mustRotate(tb testing.TB, s *Store) (id string) {
	tb.Helper()
	id, err := s.RotateKey(context.Background(), false)
	must(tb, err)
	return id
}

// get returns the value that ref, as ParseSecretRef reads it, stands for.
func get(s *Store, ref string) (string, error) {
	r, err := upstream.ParseSecretRef(ref)
	if err != nil {
		return "", err
	}
	v, err := s.GetSecretValue(context.Background(), r)
	return string(v.SecretData.Reveal()), err
}

func wantValue(tb testing.TB, s *Store, ref, want string) {
	tb.Helper()
	if got, err := get(s, ref); err != nil || got != want {
		tb.Errorf("%s: got %q, %v; want %q", ref, got, err, want)
	}
}

func wantErr(tb testing.TB, err, want error) {
	tb.Helper()
	if !errors.Is(err, want) {
		tb.Errorf("got error %v, want one that is %v", err, want)
	}
}

func secret(s string) upstream.SecretData { return upstream.NewSecretData([]byte(s)) }
