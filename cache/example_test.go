package cache_test

import (
	"context"
	"fmt"
	"log"

	"secretagent/cache"
	"secretagent/upstream"
)

func Example() {
	// Any backend will do that has a GetSecretValue; this one knows a single secret.
	backend := fetchFunc(func(_ context.Context, ref upstream.SecretRef) (upstream.SecretValue, error) {
		fmt.Println("the backend is asked for", ref)
		return upstream.SecretValue{SecretName: ref.SecretName, VersionID: "v1", SecretData: upstream.NewSecretData([]byte("s3cret"))}, nil
	})
	c, err := cache.New(backend, cache.Options{})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()

	for range 2 {
		answer, err := c.Lookup(ctx, upstream.SecretRef{SecretName: "app/db"})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(answer.Freshness, answer.Value.VersionID, answer.Value.SecretData)
	}

	stop()
	if err := <-done; err != nil {
		log.Fatal(err)
	}
	// Output:
	// the backend is asked for app/db:ACSCurrent
	// miss v1 [secret]
	// hit v1 [secret]
}
