package agent_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth/credentials"
	sdkerrors "github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"

	"secretagent/agent"
	"secretagent/upstream"
)

// terraform plays the resource alicloud_kms_secret of Terraform's provider: which calls it makes,
// with which parameters, and what it compares of the answers.
type terraform struct {
	*testing.T
	client  *sdk.Client
	address string

	// earlier plays the providers before 1.224, which know no policies and send less and otherwise.
	earlier bool
}

// block is the resource as it is written, and as it is read. What is empty is left out.
type block struct {
	Name, Data, Version, DataType, Description, Key, Instance, Policy string

	Stages []string // sorted
	Tags   map[string]string
	Force  bool // force_delete_without_recovery
}

// call makes a POST with all parameters of the action in the form body, as the provider does. It
// returns the code of a refusal.
func (tf *terraform) call(action string, params map[string]string) (answer map[string]any, code string) {
	tf.Helper()
	r := requests.NewCommonRequest()
	r.Domain, r.Product, r.Version, r.ApiName, r.Scheme, r.Method = tf.address, "Kms", "2016-01-20", action, "HTTP", "POST"
	r.FormParams = params
	response, err := tf.client.ProcessCommonRequest(r)
	if e, ok := errors.AsType[sdkerrors.Error](err); ok {
		return nil, fmt.Sprint(e.HttpStatus(), " ", e.ErrorCode())
	}
	must(tf, err)
	must(tf, json.Unmarshal(response.GetHttpContentBytes(), &answer))
	return answer, ""
}

// do is call for what must succeed.
func (tf *terraform) do(action string, params map[string]string) map[string]any {
	tf.Helper()
	answer, code := tf.call(action, params)
	if code != "" {
		tf.Fatalf("%s: %s", action, code)
	}
	return answer
}

// jsonOf returns a JSON array of texts or of tags.
func jsonOf(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}

// given adds a parameter unless it is empty.
func given(params map[string]string, name, value string) {
	if value != "" {
		params[name] = value
	}
}

func tagPairs(tags map[string]string) (list []map[string]string) {
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		list = append(list, map[string]string{"TagKey": key, "TagValue": tags[key]})
	}
	return list
}

// create returns the code of a refusal.
func (tf *terraform) create(want block) (code string) {
	tf.Helper()
	params := map[string]string{"SecretName": want.Name, "SecretData": want.Data, "VersionId": want.Version, "SecretDataType": want.DataType}
	given(params, "EncryptionKeyId", want.Key)
	given(params, "DKMSInstanceId", want.Instance)
	given(params, "Description", want.Description)
	if !tf.earlier {
		given(params, "Policy", want.Policy)
		params["EnableAutomaticRotation"] = "false"
	}
	if want.Tags != nil {
		params["Tags"] = jsonOf(tagPairs(want.Tags))
	}
	if _, code := tf.call("CreateSecret", params); code != "" {
		return code
	}
	if want.Stages != nil {
		tf.put(want, block{})
	}
	return ""
}

func (tf *terraform) put(want, have block) {
	tf.Helper()
	params := map[string]string{"SecretName": want.Name, "SecretData": want.Data, "VersionId": want.Version}
	if !tf.earlier || have.DataType != "" && want.DataType != have.DataType {
		params["SecretDataType"] = want.DataType
	}
	stages := want.Stages
	if stages == nil && !tf.earlier { // then those that were read
		stages = have.Stages
	}
	if stages != nil {
		params["VersionStages"] = jsonOf(stages)
	}
	tf.do("PutSecretValue", params)
}

func (tf *terraform) update(want, have block) {
	tf.Helper()
	if want.Data != have.Data || want.Version != have.Version || want.DataType != have.DataType || want.Stages != nil && !slices.Equal(want.Stages, have.Stages) {
		tf.put(want, have)
	}
	if !samePolicy(want, have) {
		tf.do("SetSecretPolicy", map[string]string{"SecretName": want.Name, "Policy": want.Policy})
	}
	if want.Description != have.Description {
		tf.do("UpdateSecret", map[string]string{"SecretName": want.Name, "Description": want.Description})
	}
	if !maps.Equal(want.Tags, have.Tags) {
		tf.retag(want, have)
	}
}

// retag removes the tags that are to be other ones, and sets those that are new.
func (tf *terraform) retag(want, have block) {
	tf.Helper()
	gone, added := slices.Sorted(maps.Keys(have.Tags)), tagPairs(want.Tags)
	if tf.earlier {
		if len(gone) > 0 {
			tf.do("UntagResource", map[string]string{"SecretName": want.Name, "TagKeys": jsonOf(gone)})
		}
		if len(added) > 0 {
			tf.do("TagResource", map[string]string{"SecretName": want.Name, "Tags": jsonOf(added)})
		}
		return
	}
	params := func() map[string]string {
		return map[string]string{"ResourceType": "secret", "ResourceId.1": want.Name}
	}
	if len(gone) > 0 {
		untag := params()
		for i, key := range gone {
			untag[fmt.Sprintf("TagKey.%d", i+1)] = key
		}
		tf.do("UntagResources", untag)
	}
	if len(added) > 0 {
		tag := params()
		for i, pair := range added {
			tag[fmt.Sprintf("Tag.%d.Key", i+1)], tag[fmt.Sprintf("Tag.%d.Value", i+1)] = pair["TagKey"], pair["TagValue"]
		}
		tf.do("TagResources", tag)
	}
}

// read returns what a refresh or an import finds.
func (tf *terraform) read(name string) (have block, found bool) {
	tf.Helper()
	secret := func() map[string]string { return map[string]string{"SecretName": name} }
	describe := secret()
	if tf.earlier {
		describe["FetchTags"] = "true"
	}
	meta, code := tf.call("DescribeSecret", describe)
	switch code {
	case "":
	case "404 Forbidden.ResourceNotFound":
		return have, false
	default:
		tf.Fatal(code)
	}
	text := func(answer map[string]any, member string) string { s, _ := answer[member].(string); return s }
	have.Name, have.Description, have.Key, have.Instance = text(meta, "SecretName"), text(meta, "Description"), text(meta, "EncryptionKeyId"), text(meta, "DKMSInstanceId")
	if have.Instance != "" && !tf.earlier {
		have.Policy = text(tf.do("GetSecretPolicy", secret()), "Policy")
	}
	value := tf.do("GetSecretValue", secret())
	have.Data, have.Version, have.DataType = text(value, "SecretData"), text(value, "VersionId"), text(value, "SecretDataType")
	for _, stage := range value["VersionStages"].(map[string]any)["VersionStage"].([]any) {
		have.Stages = append(have.Stages, stage.(string))
	}
	slices.Sort(have.Stages)
	var rows []any
	if tf.earlier {
		rows = meta["Tags"].(map[string]any)["Tag"].([]any)
	} else {
		tags := tf.do("ListTagResources", map[string]string{"ResourceType": "secret", "ResourceId.1": name})
		rows = tags["TagResources"].(map[string]any)["TagResource"].([]any)
		if text(tags, "NextToken") != "" {
			tf.Fatal("the tags of one secret take more than a page")
		}
	}
	for _, row := range rows {
		if have.Tags == nil {
			have.Tags = map[string]string{}
		}
		have.Tags[text(row.(map[string]any), "TagKey")] = text(row.(map[string]any), "TagValue")
	}
	return have, true
}

// samePolicy compares as JSON. Without one in the block whatever is there is right.
func samePolicy(want, have block) bool {
	var a, b any
	return want.Policy == "" || json.Unmarshal([]byte(want.Policy), &a) == nil && json.Unmarshal([]byte(have.Policy), &b) == nil && reflect.DeepEqual(a, b)
}

// plan returns the attributes that differ; those with an exclamation mark would replace the secret.
func (tf *terraform) plan(want, have block) string {
	var diff []string
	for _, a := range []struct {
		name string
		same bool
	}{
		{"secret_name!", want.Name == have.Name}, {"encryption_key_id!", want.Key == have.Key}, {"dkms_instance_id!", want.Instance == have.Instance},
		{"secret_data", want.Data == have.Data}, {"secret_data_type", want.DataType == have.DataType}, {"version_id", want.Version == have.Version},
		{"version_stages", want.Stages == nil || slices.Equal(want.Stages, have.Stages)}, // computed where it is left out
		{"description", want.Description == have.Description}, {"policy", samePolicy(want, have)}, {"tags", maps.Equal(want.Tags, have.Tags)},
	} {
		if !a.same {
			diff = append(diff, a.name)
		}
	}
	return strings.Join(diff, " ")
}

// apply makes the secret what it is to be, and checks that the next plan finds no difference.
func (tf *terraform) apply(what string, want block) {
	tf.Helper()
	if have, found := tf.read(want.Name); !found {
		if code := tf.create(want); code != "" {
			tf.Fatalf("%s: CreateSecret: %s", what, code)
		}
	} else if diff := tf.plan(want, have); diff == "" || strings.Contains(diff, "!") {
		tf.Fatalf("%s: the plan before is %q", what, diff)
	} else {
		tf.update(want, have)
	}
	tf.settled(what, want)
}

// settled checks that a plan finds nothing to do.
func (tf *terraform) settled(what string, want block) {
	tf.Helper()
	have, _ := tf.read(want.Name)
	if diff := tf.plan(want, have); diff != "" {
		tf.Fatalf("%s: the next plan would change %s:\nwant %+v\nhave %+v", what, diff, want, have)
	}
}

// destroy sends a recovery window, too, which has a default. What is gone already is no error.
func (tf *terraform) destroy(b block) {
	tf.Helper()
	_, code := tf.call("DeleteSecret", map[string]string{"SecretName": b.Name, "ForceDeleteWithoutRecovery": fmt.Sprint(b.Force), "RecoveryWindowInDays": "30"})
	if code != "" && code != "404 Forbidden.ResourceNotFound" {
		tf.Fatalf("DeleteSecret: %s", code)
	}
	if have, found := tf.read(b.Name); found {
		tf.Errorf("destroyed, and yet there is %+v", have)
	}
}

// startTerraform runs an agent with these emulations, for a client with the access key of the
// provider.
func startTerraform(t *testing.T, dir, emulate string) (*world, *terraform) {
	t.Helper()
	w := start(t, dir, edited(withKeys("id: terraform, secretFile: ./terraform.key"), "local:\n", "local:\n    emulate: {"+emulate+"}\n"))
	transport, config := &http.Transport{}, sdk.NewConfig()
	config.Transport = roundTripper{transport}
	client, err := sdk.NewClientWithOptions("cn-hangzhou", config, credentials.NewAccessKeyCredential("terraform", w.read("terraform.key")))
	must(t, err)
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		client.Shutdown()
	})
	return w, &terraform{T: t, client: client, address: w.agent.APIAddrs()[1].String()}
}

// roundTripper keeps the SDK from changing the transport, which it does when it sees one of
// the standard library.
type roundTripper struct{ http.RoundTripper }

const emulateAll = "instanceId: kst-hzz62f1cb66fa42qo, keys: [alias/app, key-hzz62f1cb66fa42qo], putMovesStages: true"

const aPolicy = `{"Version":"1","Statement":[{"Effect":"Allow","Principal":{"RAM":["acs:ram::1:user/ci"]},"Action":["kms:*"],"Resource":["*"]}]}`

// TestTerraform takes a secret through its life as Terraform would: no step leaves a difference.
func TestTerraform(t *testing.T) {
	for who, earlier := range map[string]bool{"newest": false, "earlier": true} {
		t.Run(who, func(t *testing.T) {
			dir := shortTempDir(t)
			w, tf := startTerraform(t, dir, emulateAll)
			tf.earlier = earlier
			full, least := tf.everything(), tf.defaults()
			tf.imports()

			// A rotation of the keyring is none of Terraform's business.
			keys, err := agent.OpenKeys(t.Context(), w.cfg, slog.New(slog.DiscardHandler))
			must(t, err)
			_, err = keys.Rotate(t.Context(), true)
			must(t, errors.Join(err, keys.Await(t.Context(), func(agent.KeyState) {}), keys.Close()))
			tf.settled("keys rotated", full)
			tf.settled("keys rotated", least)

			tf.destroy(full)
			tf.destroy(full)
			tf.apply("create again", full)
			tf.destroy(full)
			least.Force = true
			tf.destroy(least)
		})
	}
}

// everything changes one thing after the other in a block with all that has no default.
func (tf *terraform) everything() block {
	b := block{
		Name: "tf/full", Data: "first", Version: "v1", DataType: "text", Key: "key-hzz62f1cb66fa42qo", Instance: "kst-hzz62f1cb66fa42qo", Policy: aPolicy,
		Stages: []string{"ACSCurrent", "Blue"}, Description: "from Terraform", Tags: map[string]string{"env": "dev", "empty": ""}, Force: true,
	}
	if tf.earlier {
		b.Policy = ""
	}
	tf.apply("create", b)
	b.Data, b.Version = "second", "v2"
	tf.apply("new value", b)
	b.Stages = []string{"ACSCurrent", "Blue", "Green"}
	tf.apply("one label more", b)
	b.Stages = []string{"ACSCurrent", "Red"}
	tf.apply("other labels", b)
	b.Data, b.Version, b.Stages = "first", "v1", []string{"ACSCurrent"}
	tf.apply("back to the version before, without labels", b)
	b.Tags, b.Description = map[string]string{"env": "prod", "team": "core"}, "changed"
	tf.apply("tags and description", b)
	b.Tags = nil
	tf.apply("no tags", b)
	if b.Policy != "" {
		b.Policy = strings.ReplaceAll(strings.Replace(aPolicy, "Allow", "Deny", 1), ",", ",\n  ")
		tf.apply("policy", b)
	}
	return b
}

// defaults has a block with nothing but what must be there.
func (tf *terraform) defaults() block {
	b := block{Name: "tf/least", Data: "first", Version: "v1", DataType: "text"}
	tf.apply("create by defaults", b)
	b.Data, b.Version = "second", "v2"
	tf.apply("new value by defaults", b)
	if !tf.earlier { // which names no labels then, so that there is nothing to move
		b.Data, b.Version = "first", "v1"
		tf.apply("back by defaults", b)
	}
	return b
}

// imports reads what was made elsewhere.
func (tf *terraform) imports() {
	tf.do("CreateSecret", map[string]string{"SecretName": "tf/imported", "SecretData": "x", "VersionId": "v1"})
	tf.settled("import", block{Name: "tf/imported", Data: "x", Version: "v1", DataType: "text"})
}

// TestTerraformByTheRules shows what the published rules of the API leave of it: the labels stay
// as they are, and what only the cloud has is refused.
func TestTerraformByTheRules(t *testing.T) {
	w, tf := startTerraform(t, shortTempDir(t), "")
	b := block{Name: "tf/app", Data: "first", Version: "v1", DataType: "text"}
	tf.apply("create", b)
	b.Stages = []string{"ACSCurrent", "Blue"}
	for range 2 {
		have, _ := tf.read(b.Name)
		if diff := tf.plan(b, have); diff != "version_stages" {
			t.Errorf("the plan is %q", diff)
		}
		tf.update(b, have)
	}
	for want, b := range map[string]block{
		"400 InvalidParameter":      {Instance: "kst-hzz62f1cb66fa42qo"},
		"400 InvalidParameter ":     {Policy: aPolicy},
		"404 Forbidden.KeyNotFound": {Key: "alias/app"},
	} {
		b.Name, b.Data, b.Version, b.DataType = "tf/new", "x", "v1", "text"
		if code := tf.create(b); code != strings.TrimSpace(want) {
			t.Errorf("%+v: %q, want %s", b, code, want)
		}
	}
	for _, c := range []struct{ action, secret, want string }{
		{"GetSecretPolicy", "tf/app", "400 UnsupportedOperation"},
		{"SetSecretPolicy", "tf/app", "400 UnsupportedOperation"},
		{"GetSecretPolicy", "tf/new", "404 Forbidden.ResourceNotFound"},
	} {
		if _, code := tf.call(c.action, map[string]string{"SecretName": c.secret, "Policy": upstream.DefaultPolicy}); code != c.want {
			t.Errorf("%s of %s: %q, want %s", c.action, c.secret, code, c.want)
		}
	}
	must(t, w.stop())
}
