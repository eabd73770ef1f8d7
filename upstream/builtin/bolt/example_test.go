package bolt_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/builtin/bolt"
)

func Example() {
	dir, err := os.MkdirTemp("", "local")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	store, err := bolt.Open(bolt.Options{
		Database: filepath.Join(dir, "data", "secrets.db"),
		Options:  builtin.Options{Keyring: filepath.Join(dir, "keys", "keyring.json")},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()

	ctx := context.Background()
	data := func(s string) upstream.SecretData { return upstream.NewSecretData([]byte(s)) }
	_, err = store.CreateSecret(ctx, upstream.CreateSecretInput{SecretName: "app/db", VersionID: "v1", SecretData: data("first")})
	if err != nil {
		log.Fatal(err)
	}
	_, err = store.PutSecretValue(ctx, upstream.PutSecretValueInput{SecretName: "app/db", VersionID: "v2", SecretData: data("second")})
	if err != nil {
		log.Fatal(err)
	}
	for _, stage := range []upstream.VersionStage{"", upstream.ACSPrevious} {
		value, err := store.GetSecretValue(ctx, upstream.SecretRef{SecretName: "app/db", VersionStage: stage})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("version %s: %s\n", value.VersionID, value.SecretData.Reveal())
	}
	// Output:
	// version v2: second
	// version v1: first
}
