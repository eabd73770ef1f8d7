package builtin_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
)

func Example() {
	dir, err := os.MkdirTemp("", "local")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	store, err := builtin.Open(builtin.Options{
		Database: filepath.Join(dir, "data", "secrets.db"),
		Keyring:  filepath.Join(dir, "keys", "keyring.json"),
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
	for _, text := range []string{"app/db", "app/db:ACSPrevious", "app/db:green"} {
		ref, err := upstream.ParseSecretRef(text)
		if err != nil {
			log.Fatal(err)
		}
		value, err := store.GetSecretValue(ctx, ref)
		if errors.Is(err, upstream.ErrNotFound) {
			fmt.Println(text, "is not found")
			continue
		}
		fmt.Printf("%s is version %s: %s\n", text, value.VersionID, value.SecretData.Reveal())
	}
	// Output:
	// app/db is version v2: second
	// app/db:ACSPrevious is version v1: first
	// app/db:green is not found
}
