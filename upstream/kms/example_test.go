package kms_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"secretagent/upstream"
	"secretagent/upstream/kms"
)

// A sidecar on ECS asks the gateway of its VPC, and the public one while that is down.
func ExampleNew() {
	credentials, err := kms.NewCredentials(kms.CredentialOptions{Type: "ecs_ram_role"})
	if err != nil {
		log.Fatal(err)
	}
	defer credentials.Close()
	client, err := kms.New(kms.Options{
		Endpoints: []kms.Endpoint{
			{Host: "kms-vpc.cn-hangzhou.aliyuncs.com"},
			{Host: "kms.cn-hangzhou.aliyuncs.com"},
		},
		Credentials: credentials,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	ctx, cancel := context.WithCancel(context.Background())
	cancel() // the example asks nobody
	_, err = client.GetSecretValue(ctx, upstream.SecretRef{SecretName: "app/db"})
	fmt.Println(errors.Is(err, context.Canceled), client.Status().Endpoints[0].State)
	// Output: true ready
}
