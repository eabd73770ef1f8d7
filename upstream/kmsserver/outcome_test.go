package kmsserver_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	api "github.com/aliyun/alibaba-cloud-sdk-go/services/kms"

	"secretagent/upstream"
	"secretagent/upstream/kms"
)

// TestAnUnknownOutcomeIsTold: of a change that may have been made all the same, clients are told so, by the API and by
// our own client, also where a repetition was refused. What the backend says of its trouble is told on a trusted listener only.
func TestAnUnknownOutcomeIsTold(t *testing.T) {
	f := start(t)
	f.fake.MustCreate(t, "app/db", "v1", "x")
	lost := &upstream.Error{Err: upstream.ErrUnavailable, Message: "no disk is left", Unknown: true}
	refused := &upstream.Error{Err: upstream.ErrUnavailable, Message: "no disk is left"}
	sdk := official(t, f.address, &http.Transport{}, accessKey(keySecret))
	put, get := api.CreatePutSecretValueRequest(), api.CreateGetSecretValueRequest()
	put.SecretName, put.VersionId, put.SecretData, get.SecretName = "app/db", "v2", "y", "app/db"
	for _, tc := range []struct {
		err  error
		want bool
	}{{lost, true}, {refused, false}, {context.DeadlineExceeded, true}} {
		f.fake.FailNext("PutSecretValue", 1, tc.err)
		_, err := sdk.PutSecretValue(put)
		if err == nil || strings.Contains(err.Error(), "the outcome of the change is unknown") != tc.want || strings.Contains(err.Error(), "disk") {
			t.Errorf("%v: the SDK is told %v", tc.err, err)
		}
	}
	f.fake.FailNext("GetSecretValue", 1, context.DeadlineExceeded)
	if _, err := sdk.GetSecretValue(get); err == nil || strings.Contains(err.Error(), "outcome") {
		t.Errorf("of a read the SDK is told %v", err)
	}

	for _, tc := range []struct {
		errs []error
		want bool
	}{{[]error{lost, refused}, true}, {[]error{refused, refused}, false}} {
		client, err := kms.New(kms.Options{Endpoints: []kms.Endpoint{{Socket: f.socket}}, Retry: kms.Retry{MaxAttempts: 2, Base: time.Millisecond}})
		must(t, err)
		for _, err := range tc.errs {
			f.fake.FailNext("PutSecretValue", 1, err)
		}
		_, err = client.PutSecretValue(t.Context(), upstream.PutSecretValueInput{SecretName: "app/db", VersionID: "v2", SecretData: upstream.NewSecretData([]byte("y"))})
		known, ok := errors.AsType[*upstream.Error](err)
		if !ok || known.Unknown != tc.want || !strings.Contains(err.Error(), "no disk is left") || strings.Contains(err.Error(), "outcome") != tc.want {
			t.Errorf("%v: %v", tc.errs, err)
		}
		must(t, client.Close())
	}
}
