// Package kms is a client of Alibaba Cloud KMS Secrets Manager, and of everything that
// speaks its API over TCP or over a unix socket.
//
//	client, err := kms.New(kms.Options{
//		Endpoints:   []kms.Endpoint{{Region: "cn-hangzhou"}},
//		Credentials: kms.StaticCredential(id, secret, ""),
//	})
//	value, err := client.GetSecretValue(ctx, upstream.SecretRef{SecretName: "app/db"})
//
// A [Client] is an [upstream.Manager]. Requests, signatures and the decoding of answers are
// the official SDK's; contexts, retries, failover, the call budget and the care for what may
// be printed are ours.
//
// No error of this package holds a secret value, a credential or a URL.
package kms
