package upstream

import (
	"bytes"
	"encoding/json"
	"time"
)

// WireTime formats t as the KMS API does: UTC, whole seconds, RFC 3339 with Z.
func WireTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

// GetSecretValueJSON returns v as the JSON body of the GetSecretValue API, ended by a
// newline. It reveals the secret: the caller sends the bytes to whoever may read v and
// nowhere else. The slice is new and belongs to the caller.
//
// SecretData is text on the wire whatever its type; bytes that are not UTF-8 cannot be
// carried, which is why backends refuse them on the way in.
func GetSecretValueJSON(v *SecretValue) []byte {
	body := wireValue{
		SecretName:     v.SecretName.Name(),
		VersionID:      v.VersionID,
		SecretData:     string(v.SecretData.Reveal()),
		SecretDataType: v.SecretDataType,
		SecretType:     v.SecretType,
		CreateTime:     WireTime(v.CreateTime),
		RequestID:      v.RequestID,
		ManagedSecret:  v.Managed,
	}
	body.VersionStages.VersionStage = v.VersionStages
	if body.VersionStages.VersionStage == nil {
		body.VersionStages.VersionStage = []VersionStage{} // [] and not null: both official SDKs accept it
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	// Encoding strings and slices of strings into memory cannot fail.
	_ = enc.Encode(&body)
	return buf.Bytes()
}

// wireValue is the body of a GetSecretValue response, in the order of the documentation.
type wireValue struct {
	SecretName     SecretName
	VersionID      VersionID `json:"VersionId"`
	SecretData     string
	SecretDataType string
	SecretType     string
	VersionStages  struct{ VersionStage []VersionStage }
	CreateTime     string
	RequestID      string `json:"RequestId"`
	*ManagedSecret        // absent for generic secrets
}

// Fault is the body of every error of the KMS API. All five texts are always there and always
// texts: one official SDK panics on anything else.
type Fault struct {
	HTTPStatus int `json:"HttpStatus"`
	Code       string
	Message    string
	RequestID  string `json:"RequestId"`
	HostID     string `json:"HostId"`
	Recommend  string
}
