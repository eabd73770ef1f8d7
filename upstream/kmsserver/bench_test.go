package kmsserver

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
)

// Verifying a V1 signature encodes every parameter twice, so its cost grows with the value.
func BenchmarkVerifyV1(b *testing.B) {
	secret := []byte("ExampleSecretKey0000000000001a")
	for _, size := range []int{32, 30720} {
		b.Run(fmt.Sprintf("value=%d", size), func(b *testing.B) {
			p := params{
				"Action": "PutSecretValue", "SecretName": "app/db", "VersionId": "v1", "SecretData": strings.Repeat("\"", size), "Version": apiVersion,
				"AccessKeyId": "key", "SignatureMethod": "HMAC-SHA1", "SignatureNonce": "n", "Timestamp": "2026-11-23T12:28:35Z",
			}
			p["Signature"] = base64.StdEncoding.EncodeToString(signV1(secret, stringToSignV1("POST", p)))
			b.ReportAllocs()
			for b.Loop() {
				cred, err := credentialsV1("POST", p)
				if err != nil {
					b.Fatal(err)
				}
				if right, _ := cred.verify(secret); !right {
					b.Fatal("refused")
				}
			}
		})
	}
}
