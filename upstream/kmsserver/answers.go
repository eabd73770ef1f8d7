package kmsserver

import (
	"bytes"
	"encoding/json"

	"secretagent/upstream"
)

// The bodies of answers, in the order of the documentation. Lists are objects around arrays,
// never null: both official SDKs accept nothing else for certain.

type stages struct{ VersionStage []upstream.VersionStage }

func stageList(list []upstream.VersionStage) stages {
	if list == nil {
		list = []upstream.VersionStage{}
	}
	return stages{list}
}

type tags struct{ Tag []wireTag }

// tagList returns nil, which is left out, unless tags were asked for.
func tagList(list []upstream.Tag, asked bool) *tags {
	if !asked {
		return nil
	}
	out := &tags{Tag: []wireTag{}}
	for _, tag := range list {
		out.Tag = append(out.Tag, wireTag{tag.Key, tag.Value})
	}
	return out
}

type emptyAnswer struct {
	RequestID string `json:"RequestId"`
}

type nameAnswer struct {
	SecretName upstream.SecretName
	RequestID  string `json:"RequestId"`
}

type createSecretAnswer struct {
	ARN        string `json:"Arn"`
	SecretName upstream.SecretName
	VersionID  upstream.VersionID `json:"VersionId"`
	SecretType string
	InstanceID string `json:"DKMSInstanceId,omitempty"`
	RequestID  string `json:"RequestId"`
}

type putSecretValueAnswer struct {
	SecretName    upstream.SecretName
	VersionID     upstream.VersionID `json:"VersionId"`
	VersionStages stages
	RequestID     string `json:"RequestId"`
}

type describeSecretAnswer struct {
	ARN               string `json:"Arn"`
	SecretName        upstream.SecretName
	SecretType        string
	Description       string
	EncryptionKeyID   string `json:"EncryptionKeyId,omitempty"`
	InstanceID        string `json:"DKMSInstanceId,omitempty"`
	CreateTime        string
	UpdateTime        string
	PlannedDeleteTime string `json:",omitempty"`

	*upstream.ManagedSecret // absent for generic secrets

	Tags      *tags  `json:",omitempty"`
	RequestID string `json:"RequestId"`
}

type listSecretsAnswer struct {
	SecretList struct{ Secret []listedSecret }
	PageNumber int
	PageSize   int
	TotalCount int
	RequestID  string `json:"RequestId"`
}

type listedSecret struct {
	SecretName        upstream.SecretName
	SecretType        string
	CreateTime        string
	UpdateTime        string
	PlannedDeleteTime string `json:",omitempty"`
	Tags              *tags  `json:",omitempty"`
}

type listVersionsAnswer struct {
	SecretName upstream.SecretName
	VersionIDs struct {
		VersionID []listedVersion `json:"VersionId"`
	} `json:"VersionIds"`
	PageNumber int
	PageSize   int
	TotalCount int
	RequestID  string `json:"RequestId"`
}

type listedVersion struct {
	VersionID     upstream.VersionID `json:"VersionId"`
	CreateTime    string
	VersionStages stages
}

type deleteSecretAnswer struct {
	SecretName        upstream.SecretName
	PlannedDeleteTime string `json:",omitempty"`
	RequestID         string `json:"RequestId"`
}

type policyAnswer struct {
	Policy    string
	RequestID string `json:"RequestId"`
}

type passwordAnswer struct {
	RandomPassword string
	RequestID      string `json:"RequestId"`
}

type listTagsAnswer struct {
	NextToken    string
	TagResources struct{ TagResource []listedTag }
	RequestID    string `json:"RequestId"`
}

type listedTag struct {
	ResourceType string
	ResourceID   upstream.SecretName `json:"ResourceId"`
	TagKey       string
	TagValue     string
}

type batchAnswer struct {
	SecretValues []json.RawMessage
	Errors       []batchError
	RequestID    string `json:"RequestId"`
}

type batchError struct {
	Code       string
	HTTPStatus int `json:"HttpStatus"`
	Message    string
	SecretName string
}

// encode returns v as JSON with a newline. The answers of this file always encode.
func encode(v any) []byte {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(err) // becomes InternalFailure; no field of the answers can do this
	}
	return buf.Bytes()
}
