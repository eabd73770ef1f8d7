package endpoint_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"secretagent/agent/endpoint"
	"secretagent/upstream"
)

// TestAWSAgent holds what the AWS Secrets Manager Agent answers, row by row: status and the whole
// body, which ends without a newline.
func TestAWSAgent(t *testing.T) {
	r := start(t, endpoint.Options{Callers: []endpoint.Caller{callerWith(t, "app", []string{"My*", "none", "a+b", "slow", "throttled", "broken", "far", "going"}, token)}})
	first := value("MyTest", "v1", "first", upstream.ACSPrevious)
	current := value("MyTest", "v2", `{"password":"<&>"}`, upstream.ACSCurrent, "AWSPENDING")
	current.CreateTime = time.UnixMilli(1700000000046)
	r.put(first)
	r.put(current)
	r.put(value("My/Test", "v1", "with a slash", upstream.ACSCurrent))
	r.put(value("a+b", "v1", "with a plus", upstream.ACSCurrent))
	binary := value("MyKey", "v1", "AAEC", upstream.ACSCurrent)
	binary.SecretDataType = upstream.DataTypeBinary
	r.put(binary)
	empty := value("MyNothing", "v1", "", upstream.ACSCurrent)
	empty.SecretDataType = upstream.DataTypeBinary
	r.put(empty)
	r.put(value("hidden", "v1", marker, upstream.ACSCurrent))
	r.fail("throttled", &upstream.Error{Message: "Slow down.", Err: upstream.ErrThrottled})
	r.fail("broken", &upstream.Error{Message: "The backend fails.", Err: upstream.ErrUnavailable})
	r.fail("far", &upstream.Error{Message: "No backend is there.", Err: upstream.ErrUnavailable, Unreached: true})
	r.fail("slow", context.DeadlineExceeded)
	r.fail("going", upstream.ErrPendingDeletion)
	arn := func(name, sum string) string {
		return `"ARN":"arn:aws:secretsmanager:::secret:` + name + "-" + sum + `"`
	}

	myTest := `{` + arn("MyTest", "e12e9e") + `,"Name":"MyTest","VersionId":"v2","SecretString":"{\"password\":\"<&>\"}","VersionStages":["AWSCURRENT","AWSPENDING"],"CreatedDate":"1700000000.046"}`
	previous := `{` + arn("MyTest", "e12e9e") + `,"Name":"MyTest","VersionId":"v1","SecretString":"first","VersionStages":["AWSPREVIOUS"],"CreatedDate":"1708529966"}`
	const (
		fullARN = "arn:aws:secretsmanager:us-east-1:123456789012:secret:MyTest-AbCdEf"
		missing = `{"__type":"ResourceNotFoundException", "message":"Secrets Manager can't find the specified secret."}`
		denied  = `{"__type":"AccessDeniedException", "message":"The caller may not read this secret."}`
	)
	get := func(target string) string { return request("GET", target, hostLine, awsLine) }
	for _, test := range []struct {
		name, raw string
		status    int
		body      string
	}{
		{"a value", get("/secretsmanager/get?secretId=MyTest"), 200, myTest},
		{"a value by path", get("/v1/MyTest"), 200, myTest},
		{"a slash", get("/v1/My/Test"), 200, `{` + arn("My/Test", "8d364b") + `,"Name":"My/Test","VersionId":"v1","SecretString":"with a slash","VersionStages":["AWSCURRENT"],"CreatedDate":"1708529966"}`},
		{"binary", get("/v1/MyKey"), 200, `{` + arn("MyKey", "347b26") + `,"Name":"MyKey","VersionId":"v1","SecretBinary":"AAEC","VersionStages":["AWSCURRENT"],"CreatedDate":"1708529966"}`},
		{"binary, empty", get("/v1/MyNothing"), 200, `{` + arn("MyNothing", "6531e3") + `,"Name":"MyNothing","VersionId":"v1","SecretBinary":"","VersionStages":["AWSCURRENT"],"CreatedDate":"1708529966"}`},
		{"a label of AWS", get("/v1/MyTest?versionStage=AWSCURRENT"), 200, myTest},
		{"the previous version", get("/v1/MyTest?versionStage=AWSPREVIOUS"), 200, previous},
		{"a label that KMS does not have", get("/v1/MyTest?versionStage=AWSPENDING"), 200, myTest},
		{"a label of KMS", get("/v1/MyTest?versionStage=ACSPrevious"), 200, previous},
		{"a version", get("/v1/MyTest?versionId=v1"), 200, previous},
		{"refreshNow", get("/v1/MyTest?refreshNow=true"), 200, myTest},
		{"refreshNow in any case", get("/v1/MyTest?refreshNow=TRUE"), 200, myTest},
		{"refreshNow as a number", get("/v1/MyTest?refreshNow=1"), 200, myTest},
		{"no refreshNow", get("/v1/MyTest?refreshNow=fAlSe"), 200, myTest},
		{"no refreshNow, as a number", get("/v1/MyTest?refreshNow=0"), 200, myTest},
		{"no value for refreshNow", get("/v1/MyTest?refreshNow=x"), 400, "invalid refreshNow value"},

		{"the last of two wins", get("/v1/MyTest?versionId=none&versionId=v1"), 200, previous},
		{"the last of two names wins", get("/secretsmanager/get?secretId=none&secretId=MyTest"), 200, myTest},
		{"the last of two is empty", get("/v1/MyTest?versionId=v1&versionId="), 200, myTest},
		{"& at the start", get("/secretsmanager/get?&secretId=MyTest"), 200, myTest},
		{"& at the end", get("/secretsmanager/get?secretId=MyTest&"), 200, myTest},
		{"an empty version", get("/v1/MyTest?versionId="), 200, myTest},
		{"an empty label", get("/v1/MyTest?versionStage="), 200, myTest},
		{"a plus, which no name of AWS can mean as a space", get("/secretsmanager/get?secretId=a+b&versionStage="), 200, `{` + arn("a+b", "300273") + `,"Name":"a+b","VersionId":"v1","SecretString":"with a plus","VersionStages":["AWSCURRENT"],"CreatedDate":"1708529966"}`},

		{"an ARN", get("/secretsmanager/get?secretId=" + fullARN), 200, myTest},
		{"an ARN, encoded", get("/secretsmanager/get?secretId=" + strings.ReplaceAll(fullARN, ":", "%3A")), 200, myTest},
		{"an ARN in the path", get("/v1/" + fullARN), 200, myTest},
		{"a partial ARN", get("/v1/arn:aws:secretsmanager:us-east-1:123456789012:secret:MyTest"), 200, myTest},
		{"an ARN of another partition", get("/v1/arn:aws-us-gov:secretsmanager:us-gov-west-1:123456789012:secret:MyTest-AbCdEf"), 200, myTest},
		{"the ARN that was answered", get("/v1/arn:aws:secretsmanager:::secret:MyTest-e12e9e"), 200, myTest},
		{"an ARN with a version", get("/v1/" + fullARN + "?versionId=v1"), 200, previous},
		{"an ARN of nothing", get("/v1/arn:aws:secretsmanager:us-east-1:123456789012:secret:none-AbCdEf"), 400, missing},
		{"an ARN of what may not be read", get("/v1/arn:aws:secretsmanager:us-east-1:123456789012:secret:hidden-AbCdEf"), 400, denied},
		{"an ARN of another service", get("/v1/arn:aws:s3:::MyTest"), 400,
			`{"__type":"InvalidParameterException", "message":"The specified parameter \"VersionStage\" is not valid: character 4 is not one of A-Z a-z 0-9 _ / + = . @ -."}`},

		{"a missing secret", get("/v1/none"), 400, missing},
		{"a missing label", get("/v1/MyTest?versionStage=none"), 400, missing},
		{"a missing version", get("/v1/MyTest?versionId=none"), 400, missing},
		{"denied", get("/v1/hidden"), 400, denied},
		{"denied, though there is none", get("/v1/hidden/none"), 400, denied},
		{"throttled", get("/v1/throttled"), 400, `{"__type":"ThrottlingException", "message":"Slow down."}`},
		{"a failure upstream", get("/v1/broken"), 500, `{"__type":"InternalServiceError", "message":"The backend fails."}`},
		{"no connection", get("/v1/far"), 502, `{"__type":"ConnectionError", "message":"No backend is there."}`},
		{"a timeout", get("/v1/slow"), 504, `{"__type":"TimeoutError", "message":"Timeout"}`},
		{"marked for deletion", get("/v1/going"), 400, `{"__type":"InvalidRequestException", "message":"You can't perform this operation on the secret because it was marked for deletion."}`},

		{"no secretId", get("/secretsmanager/get"), 400, "missing parameter secretId"},
		{"an empty secretId", get("/secretsmanager/get?secretId="), 400, "missing parameter secretId"},
		{"no name in the path", get("/v1/"), 400, "missing secret ID"},
		{"an unknown parameter", get("/v1/MyTest?abc=1"), 400, "unknown parameter: abc"},
		{"a parameter in another case", get("/v1/MyTest?versionid=v1"), 400, "unknown parameter: versionid"},
		{"a name twice", get("/v1/MyTest?secretId=MyTest"), 400, "unknown parameter: secretId"},
		{"a role", get("/v1/MyTest?roleArn=arn:aws:iam::123456789012:role/name"), 400, "unknown parameter: roleArn"},

		{"a wrong token", request("GET", "/v1/MyTest", hostLine, awsLine+"0"), 403, "Bad Token"},
		{"an empty token", request("GET", "/v1/MyTest", hostLine, "X-Aws-Parameters-Secrets-Token:"), 403, "Bad Token"},
		{"the same token twice", request("GET", "/v1/MyTest", hostLine, awsLine, vaultLine), 200, myTest},
		{"two tokens that differ", request("GET", "/v1/MyTest", hostLine, awsLine, vaultLine+"0"), 403, "Bad Token"}, // stricter than theirs
		{"X-Forwarded-For", request("GET", "/v1/MyTest", hostLine, awsLine, "X-Forwarded-For: 10.0.0.1"), 400, "Forwarded"},
		{"X-Forwarded-For, and no valid token", request("GET", "/v1/MyTest", hostLine, awsLine+"0", "X-Forwarded-For: 10.0.0.1"), 400, "Forwarded"},
		{"another forwarding header", request("GET", "/v1/MyTest", hostLine, awsLine, "Via: 1.1 proxy"), 400, "Forwarded"}, // stricter, too
		{"a foreign host", request("GET", "/v1/MyTest", "Host: evil.example", awsLine), 403,
			`{"__type":"HostNotAllowed", "message":"The Host header must name this host's loopback, such as localhost or 127.0.0.1, or a name that the configuration allows."}`},
		{"a page", request("GET", "/v1/MyTest", hostLine, awsLine, "Origin: http://evil.example"), 403,
			`{"__type":"OriginNotAllowed", "message":"The agent does not answer requests that a browser sends for a page."}`},
		{"another method", request("POST", "/v1/MyTest", hostLine, awsLine, "Content-Length: 0"), 405, "Not allowed"},
		{"another path", get("/other"), 404, "Not found"},

		// format= decides the shape, and nothing else.
		{"in raw", get("/v1/MyTest?versionStage=AWSPREVIOUS&format=raw"), 200, "first"},
		{"an ARN in raw", get("/v1/" + fullARN + "?versionStage=AWSPREVIOUS&format=raw"), 200, "first"},
	} {
		c := r.dial(t)
		c.send(test.raw)
		got := c.receive("GET")
		if got.status != test.status || got.body != test.body {
			t.Errorf("%s: %d %s\nwant %d %s", test.name, got.status, got.body, test.status, test.body)
		}
		if strings.Contains(got.body, marker) {
			t.Errorf("%s: the answer holds a value of others", test.name)
		}
	}
	c := r.dial(t)
	c.send(request("HEAD", "/v1/MyTest", hostLine, awsLine))
	if got := c.receive("HEAD"); got.status != 405 {
		t.Errorf("HEAD: %d", got.status)
	}
	if n := r.refreshes.Load(); n != 3 {
		t.Errorf("%d refreshes, want 3", n)
	}
}

// TestFormatAWSElsewhere holds that whoever asks for the format, by the configuration of the
// endpoint or of a caller or by the query, gets the labels and errors of AWS too.
func TestFormatAWSElsewhere(t *testing.T) {
	aws := callerWith(t, "aws", []string{"app/*"}, token)
	kms := callerWith(t, "app", []string{"app/*"}, token)
	aws.Format = endpoint.FormatAWS
	for name, test := range map[string]struct {
		opts  endpoint.Options
		query string
	}{
		"endpoint": {endpoint.Options{Callers: []endpoint.Caller{kms}, Format: endpoint.FormatAWS}, "?"},
		"caller":   {endpoint.Options{Callers: []endpoint.Caller{aws}}, "?"},
		"query":    {endpoint.Options{Callers: []endpoint.Caller{kms}}, "?format=aws&"},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, test.opts)
			r.put(value("app/db", "v1", "first", upstream.ACSPrevious))
			for target, want := range map[string]string{
				"/v1/app/db" + test.query + "versionStage=AWSPREVIOUS":                            `200 {"ARN":"arn:aws:secretsmanager:::secret:app/db-24c7bc","Name":"app/db","VersionId":"v1","SecretString":"first","VersionStages":["AWSPREVIOUS"],"CreatedDate":"1708529966"}`,
				"/v1/arn:aws:secretsmanager:::secret:app/db-24c7bc" + test.query + "versionId=v1": `200 {"ARN":"arn:aws:secretsmanager:::secret:app/db-24c7bc","Name":"app/db","VersionId":"v1","SecretString":"first","VersionStages":["AWSPREVIOUS"],"CreatedDate":"1708529966"}`,
				"/v1/app/none" + strings.TrimSuffix(test.query, "?"):                              `400 {"__type":"ResourceNotFoundException", "message":"Secrets Manager can't find the specified secret."}`,
				"/v1/other" + strings.TrimSuffix(test.query, "?"):                                 `400 {"__type":"AccessDeniedException", "message":"The caller may not read this secret."}`,
				"/v1/app/db" + test.query + "abc=1":                                               `400 unknown parameter: abc`,
				"/v1/app/db" + test.query + "versionId=v1&versionId=v2":                           `400 {"__type":"InvalidParameterException", "message":"The specified parameter \"versionId\" is not valid: it is given more than once."}`,
			} {
				got := r.get(t, target)
				if have := fmt.Sprintf("%d %s", got.status, got.body); have != want {
					t.Errorf("%s: %s\nwant %s", target, have, want)
				}
			}
		})
	}
}

// TestRefusalsTakeTheFormatOfTheQuery holds that a refusal that comes before the query is read
// has the shape that it names, and that the paths of this agent's own keep theirs.
func TestRefusalsTakeTheFormatOfTheQuery(t *testing.T) {
	r := start(t, endpoint.Options{Format: endpoint.FormatAWS})
	for target, want := range map[string]string{
		"/v1/a":                            "Bad Token",
		"/v1/a?format=raw":                 "TokenInvalid",
		"/v1/a?field=b&format=kms":         "TokenInvalid",
		"/v1/a?format=none":                "Bad Token",
		"/status":                          "TokenInvalid",
		"/metrics":                         "TokenInvalid",
		"/secretsmanager/batch?secretId=a": "TokenInvalid",
	} {
		c := r.dial(t)
		c.send(request("GET", target, hostLine, tokenLine+"0"))
		if got := c.receive("GET"); got.status != 403 || !strings.Contains(got.body, want) {
			t.Errorf("%s: %d %s, want %s", target, got.status, got.body, want)
		}
	}
}

// TestPing holds that the health check of the AWS agent is answered whoever asks, and that this
// opens nothing else.
func TestPing(t *testing.T) {
	r := start(t, endpoint.Options{})
	r.put(value("a", "v1", marker, upstream.ACSCurrent))
	for _, test := range []struct {
		raw    string
		status int
		body   string
	}{
		{request("GET", "/ping", hostLine), 200, "healthy"},
		{request("GET", "/ping?x=1", hostLine), 200, "healthy"},
		{request("GET", "/ping?secretId=a&format=raw&%", hostLine, tokenLine), 200, "healthy"},
		{request("GET", "/ping", hostLine, tokenLine+"0"), 200, "healthy"},
		{request("GET", "/ping", hostLine, awsLine+"0"), 200, "healthy"},
		{request("GET", "/ping", hostLine, "X-Forwarded-For: 10.0.0.1"), 200, "healthy"},
		{request("GET", "/ping", hostLine, "Via: 1.1 proxy", tokenLine), 200, "healthy"},
		{request("GET", "/ping", "Host: 10.0.0.1:2773"), 200, "healthy"},
		{request("GET", "/ping", hostLine, "Origin: http://evil.example"), 200, "healthy"},
		{request("POST", "/ping", hostLine, "Content-Length: 0"), 405, "Not allowed"},
		{request("GET", "/ping", hostLine, "Content-Length: 5") + "hello", 400, ""},

		{request("GET", "/ping/", hostLine), 403, ""},
		{request("GET", "/live", hostLine, "X-Forwarded-For: 10.0.0.1"), 403, ""},
		{request("GET", "/live", "Host: 10.0.0.1:2773"), 403, ""},
		{request("GET", "/live?x=1", hostLine), 400, ""},
		{request("GET", "/v1/a", hostLine, tokenLine, "X-Forwarded-For: 10.0.0.1"), 403, ""},
		{request("GET", "/v1/../ping", hostLine), 403, ""},
	} {
		c := r.dial(t)
		c.send(test.raw)
		got := c.receive("GET")
		if got.status != test.status || test.body != "" && got.body != test.body || strings.Contains(got.body, marker) {
			t.Errorf("%q: %d %s, want %d %s", test.raw, got.status, got.body, test.status, test.body)
		}
	}
}

// TestParameters holds the form of the Lambda extension that reads a parameter: the secret of that
// name, in the shape of Parameter Store.
func TestParameters(t *testing.T) {
	r := start(t, endpoint.Options{Callers: []endpoint.Caller{callerWith(t, "app", []string{"app/*", "key"}, token)}})
	r.put(value("app/db", "v1", "first", upstream.ACSPrevious))
	r.put(value("app/db", "v2", "second", upstream.ACSCurrent))
	binary := value("key", "blue", "AAEC", upstream.ACSCurrent)
	binary.SecretDataType = upstream.DataTypeBinary
	r.put(binary)
	parameter := func(path, name, value string, version int) string {
		return fmt.Sprintf(`{"Parameter":{"ARN":"arn:aws:ssm:::parameter%s","DataType":"text","LastModifiedDate":"2024-02-21T15:39:26Z","Name":"%s","Selector":null,"SourceResult":null,"Type":"SecureString","Value":"%s","Version":%d},"ResultMetadata":{}}`,
			path, name, value, version)
	}
	first, second := parameter("/app/db", "/app/db", "first", 1), parameter("/app/db", "/app/db", "second", 2)
	for _, test := range []struct {
		query  string
		status int
		body   string
	}{
		{"?name=%2Fapp%2Fdb&withDecryption=true", 200, second},
		{"/?name=/app/db&withDecryption=true", 200, second},
		{"?name=app/db&withDecryption=true", 200, second},
		{"?name=/app/db&withDecryption=True", 200, second},
		{"?name=/app/db", 200, second}, // as for a parameter of type String
		{"?name=/app/db&label=ACSPrevious", 200, first},
		{"?name=/app/db:ACSPrevious", 200, first},
		{"?name=/app/db&version=1&withDecryption=true", 200, first},
		{"?name=/app/db&version=1&version=2", 200, second},
		{"?name=/app/db:1", 200, first},
		{"?name=arn:aws:ssm:us-east-1:123456789012:parameter/app/db:1", 200, first},
		{"?name=/app/db:1&version=2", 400, `{"__type":"InvalidParameterException", "message":"The specified parameter \"version\" is not valid: the name has a version already; leave one of them out."}`},
		{"?name=/app/db:99", 400, `{"__type":"ParameterNotFound"}`},
		{"?name=/app/db&version=x", 400, `{"__type":"InvalidParameterException", "message":"The specified parameter \"version\" is not valid: it must be a whole number."}`},
		{"?name=arn:aws:ssm:us-east-1:123456789012:parameter/app/db", 200, second},
		{"?name=key&label=", 200, parameter("/key", "key", "AAEC", 0)},
		{"?name=/key", 200, parameter("/key", "key", "AAEC", 0)},
		{"?name=/app/db&withDecryption=false", 400, `{"__type":"InvalidParameterException", "message":"The specified parameter \"withDecryption\" is not valid: it must be true, or left out: values are not encrypted here."}`},
		{"?name=/app/none&withDecryption=true", 400, `{"__type":"ParameterNotFound"}`},
		{"?name=/app/db&label=none", 400, `{"__type":"ParameterNotFound"}`},
		{"?name=/other&withDecryption=true", 400, `{"__type":"AccessDeniedException", "message":"The caller may not read this secret."}`},
		{"", 400, "missing parameter name"},
		{"?name=", 400, "missing parameter name"},
		{"?name=/", 400, "missing parameter name"},
		{"?name=/app/db&secretId=app/db", 400, "unknown parameter: secretId"},
		{"?name=/app/db&format=kms", 400, "unknown parameter: format"},
	} {
		c := r.dial(t)
		c.send(request("GET", "/systemsmanager/parameters/get"+test.query, hostLine, awsLine))
		if got := c.receive("GET"); got.status != test.status || got.body != test.body {
			t.Errorf("%s: %d %s\nwant %d %s", test.query, got.status, got.body, test.status, test.body)
		}
	}
	if got := r.get(t, "/systemsmanager/parameters/get?name=/app/db"); got.status != 404 || got.code != "PathNotFound" {
		t.Errorf("without the header of the extension: %d %s", got.status, got.body)
	}
}
