package agent

import (
	"errors"
	"io"
	"testing"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
	"secretagent/upstream/upstreamtest"
)

// Where the last version cannot be written, no label moves.
func TestCopyToTheCloudThatFailsMovesNoLabel(t *testing.T) {
	fake, failure := upstreamtest.NewFake(), errors.New("no")
	fake.Fail("PutSecretValue", failure)
	version := func(id string, stage upstream.VersionStage) builtin.Version {
		return builtin.Version{
			SecretVersion: upstream.SecretVersion{VersionID: upstream.VersionID(id), VersionStages: []upstream.VersionStage{stage}},
			SecretData:    upstream.NewSecretData([]byte(id)), SecretDataType: upstream.DataTypeText,
		}
	}
	in := &builtin.Secret{SecretName: "a", Versions: []builtin.Version{version("v1", upstream.ACSPrevious), version("v2", upstream.ACSCurrent)}}
	if err := (cloudKeeper{fake}).PutSecret(t.Context(), in, false); !errors.Is(err, failure) {
		t.Errorf("got %v", err)
	}
	if fake.Calls("CreateSecret") != 1 || fake.Calls("ListSecretVersionIds") != 0 || fake.Calls("UpdateSecretVersionStage") != 0 {
		t.Error("it went on after the failure")
	}
}

func TestAnswersOfTheAgentAreBounded(t *testing.T) {
	var b bounded
	n, err := io.Copy(&b, io.LimitReader(zeros{}, maxJSON+1))
	if err == nil || n > maxJSON || len(b.kept) > maxJSON {
		t.Errorf("%d bytes were taken, %v", n, err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
