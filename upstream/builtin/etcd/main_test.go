package etcd

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/keyfile"
	"secretagent/upstream/upstreamtest"
)

func TestMain(m *testing.M) {
	_ = flag.Set("test.parallel", "8") // they wait for etcd rather than compute
	code := m.Run()
	upstreamtest.StopEtcd()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// client is one that is not ours. The caller closes it.
func client(tb testing.TB, e *upstreamtest.Etcd) *clientv3.Client {
	tb.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{e.URL}, TLS: e.TLS, Logger: zap.NewNop()})
	must(tb, err)
	return client
}

func sharedClient(tb testing.TB) *clientv3.Client {
	tb.Helper()
	e, _ := upstreamtest.SharedEtcd(tb)
	return client(tb, e)
}

// testOptions are those of a prefix of the test's own.
func testOptions(tb testing.TB) Options {
	tb.Helper()
	e, prefix := upstreamtest.SharedEtcd(tb)
	return optionsAt(tb, e.URL, prefix)
}

func optionsAt(tb testing.TB, url, prefix string) Options {
	tb.Helper()
	keyring := filepath.Join(tb.TempDir(), "keyring.json")
	_, err := keyfile.CreateKeyring(keyring)
	must(tb, err)
	return Options{Options: builtin.Options{Keyring: keyring}, Endpoints: []string{url}, Prefix: prefix}
}

func mustOpen(tb testing.TB, opts Options) *Store {
	tb.Helper()
	s, err := Open(opts)
	must(tb, err)
	tb.Cleanup(func() { wantErr(tb, s.Close(), nil) })
	return s
}

// fatal is what both package testing and package rapid have.
type fatal interface {
	Helper()
	Fatal(args ...any)
}

func must(tb fatal, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// only returns the error of a call that has an answer too.
func only[T any](_ T, err error) error { return err }

func wantErr(tb testing.TB, err, want error) {
	tb.Helper()
	if !errors.Is(err, want) {
		tb.Errorf("got error %v, want one that is %v", err, want)
	}
}

func create(s upstream.Manager, name, id, data string) error {
	return only(s.CreateSecret(context.Background(), upstream.CreateSecretInput{
		SecretName: upstream.SecretName(name), VersionID: upstream.VersionID(id), SecretData: upstream.NewSecretData([]byte(data)),
	}))
}

func put(s upstream.Manager, name, id, data string) error {
	return only(s.PutSecretValue(context.Background(), upstream.PutSecretValueInput{
		SecretName: upstream.SecretName(name), VersionID: upstream.VersionID(id), SecretData: upstream.NewSecretData([]byte(data)),
	}))
}

func wantValue(tb testing.TB, s upstream.Manager, name, want string) {
	tb.Helper()
	v, err := s.GetSecretValue(context.Background(), upstream.SecretRef{SecretName: upstream.SecretName(name)})
	if got := string(v.SecretData.Reveal()); err != nil || got != want {
		tb.Errorf("%s: got %q, %v; want %q", name, got, err, want)
	}
}

// numberOf returns the number that is the current value of a secret, and its version.
func numberOf(s *Store, name string) (int, error) {
	v, err := s.GetSecretValue(context.Background(), upstream.SecretRef{SecretName: upstream.SecretName(name)})
	if err != nil {
		return 0, err
	}
	if data := string(v.SecretData.Reveal()); data != string(v.VersionID) {
		return 0, fmt.Errorf("version %s has the value %s", v.VersionID, data)
	}
	return strconv.Atoi(string(v.VersionID))
}

func contains(err error, text string) bool { return err != nil && strings.Contains(err.Error(), text) }
