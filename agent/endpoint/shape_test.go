package endpoint_test

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"secretagent/agent/endpoint"
	"secretagent/upstream"
)

func TestFormats(t *testing.T) {
	r := start(t, endpoint.Options{})
	r.put(value("json", "v3", `{"username":"app","password":"<&>\u00e9","port":5432,"big":12345678901234567890,"nested":{"a":[1]}}`, upstream.ACSCurrent, "Next"))
	r.put(value("spaced", "v1", `{"list": [1, "two"], "none": null}`, upstream.ACSCurrent))
	r.put(value("text", "blue", "line\none \"quoted\" <b>", upstream.ACSCurrent))
	r.put(value("array", "7", `[1,2]`, upstream.ACSCurrent))
	binary := value("binary", "v1", "AAEC", upstream.ACSCurrent)
	binary.SecretDataType = upstream.DataTypeBinary
	r.put(binary)
	marked := value("marked", "v1", "no base64", upstream.ACSCurrent)
	marked.SecretDataType = upstream.DataTypeBinary
	r.put(marked)
	r.put(value("bom", "v1", "\ufeff{\"a\":\"b\"}", upstream.ACSCurrent))
	r.put(value("half", "v1", `{"a":"\ud800"}`, upstream.ACSCurrent))
	for _, test := range []struct{ target, contentType, want string }{
		{"/v1/json?format=aws", "application/json", `{"ARN":"arn:aws:secretsmanager:::secret:json-02bd17","Name":"json","VersionId":"v3","SecretString":"{\"username\":\"app\",\"password\":\"<&>\\u00e9\",\"port\":5432,\"big\":12345678901234567890,\"nested\":{\"a\":[1]}}","VersionStages":["AWSCURRENT","Next"],"CreatedDate":"1708529966"}`},
		{"/v1/binary?format=aws", "application/json", `{"ARN":"arn:aws:secretsmanager:::secret:binary-9a3a45","Name":"binary","VersionId":"v1","SecretBinary":"AAEC","VersionStages":["AWSCURRENT"],"CreatedDate":"1708529966"}`},
		{"/v1/json?format=vault", "application/json", `{"request_id":"req-of-the-read","lease_id":"","renewable":false,"lease_duration":0,"data":{"data":{"username":"app","password":"<&>\u00e9","port":5432,"big":12345678901234567890,"nested":{"a":[1]}},"metadata":{"created_time":"2024-02-21T15:39:26Z","custom_metadata":{"VersionId":"v3","VersionStages":"ACSCurrent,Next"},"deletion_time":"","destroyed":false,"version":3}},"wrap_info":null,"warnings":null,"auth":null,"mount_type":"kv"}`},
		{"/v1/text?format=vault", "application/json", `{"request_id":"req-of-the-read","lease_id":"","renewable":false,"lease_duration":0,"data":{"data":{"value":"line\none \"quoted\" <b>"},"metadata":{"created_time":"2024-02-21T15:39:26Z","custom_metadata":{"VersionId":"blue","VersionStages":"ACSCurrent"},"deletion_time":"","destroyed":false,"version":0}},"wrap_info":null,"warnings":null,"auth":null,"mount_type":"kv"}`},
		{"/v1/array?format=vault", "application/json", `{"request_id":"req-of-the-read","lease_id":"","renewable":false,"lease_duration":0,"data":{"data":{"value":"[1,2]"},"metadata":{"created_time":"2024-02-21T15:39:26Z","custom_metadata":{"VersionId":"7","VersionStages":"ACSCurrent"},"deletion_time":"","destroyed":false,"version":7}},"wrap_info":null,"warnings":null,"auth":null,"mount_type":"kv"}`},
		{"/v1/json?format=raw", "application/json", `{"username":"app","password":"<&>\u00e9","port":5432,"big":12345678901234567890,"nested":{"a":[1]}}`},
		{"/v1/array?format=raw", "application/json", `[1,2]`},
		{"/v1/text?format=raw", "text/plain; charset=utf-8", "line\none \"quoted\" <b>"},
		{"/v1/binary?format=raw", "application/octet-stream", "\x00\x01\x02"},
		{"/v1/binary?format=kms", "application/json", `{"SecretName":"binary","VersionId":"v1","SecretData":"AAEC","SecretDataType":"binary","SecretType":"Generic","VersionStages":{"VersionStage":["ACSCurrent"]},"CreateTime":"2024-02-21T15:39:26Z","RequestId":"req-of-the-read"}`},
		{"/v1/marked?format=aws", "application/json", `{"ARN":"arn:aws:secretsmanager:::secret:marked-d9b2fe","Name":"marked","VersionId":"v1","SecretBinary":"` + base64.StdEncoding.EncodeToString([]byte("no base64")) + `","VersionStages":["AWSCURRENT"],"CreatedDate":"1708529966"}`},
		{"/v1/marked?format=raw", "application/octet-stream", "no base64"},
		{"/v1/bom?format=vault", "application/json", `{"request_id":"req-of-the-read","lease_id":"","renewable":false,"lease_duration":0,"data":{"data":{"a":"b"},"metadata":{"created_time":"2024-02-21T15:39:26Z","custom_metadata":{"VersionId":"v1","VersionStages":"ACSCurrent"},"deletion_time":"","destroyed":false,"version":1}},"wrap_info":null,"warnings":null,"auth":null,"mount_type":"kv"}`},
		{"/v1/bom?field=a", "text/plain; charset=utf-8", "b"},
		{"/v1/json?field=username", "text/plain; charset=utf-8", "app"},
		{"/v1/json?field=password", "text/plain; charset=utf-8", "<&>é"},
		{"/v1/json?field=port", "text/plain; charset=utf-8", "5432"},
		{"/v1/json?field=big", "text/plain; charset=utf-8", "12345678901234567890"},
		{"/v1/json?field=nested", "application/json", `{"a":[1]}`},
		{"/v1/spaced?field=list", "application/json", `[1,"two"]`},
		{"/v1/json?field=%75sername", "text/plain; charset=utf-8", "app"},
		{"/v1/json?field=username&format=raw", "text/plain; charset=utf-8", "app"},
		{"/v1/json?field=username&format=aws", "application/json", `{"ARN":"arn:aws:secretsmanager:::secret:json-02bd17","Name":"json","VersionId":"v3","SecretString":"app","VersionStages":["AWSCURRENT","Next"],"CreatedDate":"1708529966"}`},
	} {
		for range 2 { // made, then from memory
			got := r.get(t, test.target)
			if got.status != 200 || strings.TrimSuffix(got.body, "\n") != test.want || got.header.Get("Content-Type") != test.contentType {
				t.Errorf("%s: %d %s\n%s\nwant %s\n%s", test.target, got.status, got.header.Get("Content-Type"), got.body, test.contentType, test.want)
			}
			if guess := got.header.Get("X-Content-Type-Options") == ""; guess != (test.contentType == "application/json") {
				t.Errorf("%s: a browser may guess: %v", test.target, guess)
			}
			if test.contentType == "application/json" && !json.Valid([]byte(got.body)) {
				t.Errorf("%s: not JSON", test.target)
			}
		}
	}
	kms := r.get(t, "/v1/json?field=username&format=kms").json(t)
	if kms["SecretData"] != "app" || kms["VersionId"] != "v3" {
		t.Errorf("a field in the kms format: %v", kms)
	}
	for target, want := range map[string]struct {
		status int
		code   string
	}{
		"/v1/json?field=missing":  {404, "FieldNotFound"},
		"/v1/spaced?field=none":   {404, "FieldNotFound"},
		"/v1/text?field=username": {400, "InvalidParameter"},
		"/v1/array?field=0":       {400, "InvalidParameter"},
		"/v1/half?field=a":        {400, "InvalidParameter"},
	} {
		if got := r.get(t, target); got.status != want.status || got.code != want.code {
			t.Errorf("%s: %d %s", target, got.status, got.code)
		}
	}
}

func TestDefaultFormat(t *testing.T) {
	f, err := endpoint.ParseFormat("aws")
	if err != nil || f != endpoint.FormatAWS {
		t.Fatal(f, err)
	}
	if _, err := endpoint.ParseFormat("xml"); err == nil {
		t.Error("xml is a format")
	}
	r := start(t, endpoint.Options{Format: f, PathPrefix: "/secret/", TokenHeaders: []string{"X-My-Token"}, AllowedHosts: []string{"Agent.Local"}})
	r.put(value("a", "v1", "x", upstream.ACSCurrent))
	c := r.dial(t)
	c.send(request("GET", "/secret/a?versionStage=AWSCURRENT", "Host: agent.local:2025", "X-My-Token: "+token))
	if got := c.receive("GET"); got.status != 200 || got.json(t)["SecretString"] != "x" {
		t.Errorf("%d %s", got.status, got.body)
	}
	if got := r.get(t, "/secret/a"); got.status != 403 || got.body != "Bad Token" {
		t.Errorf("a token in a header that is not configured: %d %s", got.status, got.body)
	}
}

func TestManyFieldsAreBounded(t *testing.T) {
	r := start(t, endpoint.Options{})
	object := map[string]string{}
	for i := range 100 {
		object[itoa(i)] = itoa(i)
	}
	data, _ := json.Marshal(object)
	r.put(value("a", "v1", string(data), upstream.ACSCurrent))
	c := r.dial(t)
	for i := range 100 {
		if got := c.ask("/v1/a?field=" + itoa(i)); got.status != 200 || got.body != itoa(i) {
			t.Fatalf("%d: %d %s", i, got.status, got.body)
		}
	}
}
