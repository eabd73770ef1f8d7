package upstream_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"secretagent/upstream"
)

const marker = "MARKER-s3cr3t"

// holder has the secret in an unexported field, where fmt cannot call its methods.
type holder struct{ inner upstream.SecretData }

func TestSecretDataHidesItself(t *testing.T) {
	data := upstream.NewSecretData([]byte(marker))
	value := upstream.SecretValue{SecretName: "app/db", SecretData: data}
	logged := &strings.Builder{}
	slog.New(slog.NewJSONHandler(logged, nil)).Info("m", "data", data, "value", value)
	slog.New(slog.NewTextHandler(logged, nil)).Info("m", "data", data, "value", value)
	encoded, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	printed := []string{logged.String(), string(encoded), fmt.Sprint(data, &data, value, &value)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%b", "%c", "%p"} {
		for _, v := range []any{data, &data, value, &value, holder{data}, &holder{data}, []any{data}, map[string]any{"k": data}} {
			printed = append(printed, fmt.Sprintf(verb, v))
		}
	}
	for _, p := range printed {
		for _, form := range []string{marker, fmt.Sprintf("%x", marker), fmt.Sprintf("%X", marker), fmt.Sprint([]byte(marker))} {
			if strings.Contains(p, form) {
				t.Errorf("the secret shows in %q", p)
			}
		}
	}
	if got := string(data.Reveal()); got != marker {
		t.Errorf("Reveal() = %q", got)
	}
}

func TestSecretDataEqual(t *testing.T) {
	a, same, other := upstream.NewSecretData([]byte("a")), upstream.NewSecretData([]byte("a")), upstream.NewSecretData([]byte("b"))
	var zero upstream.SecretData
	if !a.Equal(same) || a.Equal(other) || a.Equal(zero) || !zero.Equal(upstream.NewSecretData(nil)) {
		t.Error("Equal compares something else than the bytes")
	}
	if zero.Len() != 0 || a.Len() != 1 {
		t.Error("Len is not the number of bytes")
	}
}

func TestParseSecretRef(t *testing.T) {
	long := strings.Repeat("n", upstream.MaxSecretNameLen)
	for in, want := range map[string]upstream.SecretRef{
		"app/db":             {SecretName: "app/db"},
		"app/db:ACSPrevious": {SecretName: "app/db", VersionStage: "ACSPrevious"},
		"a_/+=.@-Z9":         {SecretName: "a_/+=.@-Z9"},
		"acs:Label":          {SecretName: "acs", VersionStage: "Label"},
		long:                 {SecretName: upstream.SecretName(long)},
		"acs:kms:cn-hangzhou:123456:secret/app/db":       {SecretName: "acs:kms:cn-hangzhou:123456:secret/app/db"},
		"acs:kms:cn-hangzhou:123456:secret/app/db:Stage": {SecretName: "acs:kms:cn-hangzhou:123456:secret/app/db", VersionStage: "Stage"},
		"acs:kms:cn-hangzhou::secret/app/db":             {SecretName: "acs:kms:cn-hangzhou::secret/app/db"},
		"acs:kms::123456:secret/app/db":                  {SecretName: "acs:kms::123456:secret/app/db"},
		"acs:kms:::secret/app/db":                        {SecretName: "app/db"},
		"acs:kms:::secret/app/db:Stage":                  {SecretName: "app/db", VersionStage: "Stage"},
		"acs:kms:r:1:secret/" + long:                     {SecretName: upstream.SecretName("acs:kms:r:1:secret/" + long)},
	} {
		got, err := upstream.ParseSecretRef(in)
		if err != nil || got != want {
			t.Errorf("ParseSecretRef(%q) = %+v, %v; want %+v", in, got, err, want)
		}
	}
	for in, param := range map[string]string{
		"":                                      "SecretName",
		":ACSCurrent":                           "SecretName",
		"a b":                                   "SecretName",
		"a\x00b":                                "SecretName",
		"数据":                                    "SecretName",
		long + "n":                              "SecretName",
		"app/db:":                               "VersionStage",
		"app/db:a:b":                            "VersionStage",
		"app/db:" + long:                        "VersionStage",
		"acs:kms:r:1:key/x":                     "SecretName",
		"acs:kms:r:secret/x":                    "SecretName",
		"acs:kms:cn-hangzhou:1:secret":          "SecretName",
		"acs:kms:r:1:secret/":                   "SecretName",
		"acs:kms:r:1:2:secret/x":                "SecretName",
		"acs:kms:r 1:1:secret/x":                "SecretName",
		"acs:kms:r:1:secret/" + long + "n":      "SecretName",
		"acs:kms:r:1:secret/x:":                 "VersionStage",
		"acs:kms:r:1:secret/x:a:b":              "VersionStage",
		"acs:kms:::secret/acs:kms:r:1:secret/x": "VersionStage",
		"acs:kms:r:1:secret/acs:kms:r:2:secret/x": "VersionStage",
	} {
		got, err := upstream.ParseSecretRef(in)
		if err == nil || !strings.Contains(err.Error(), param) || got != (upstream.SecretRef{}) {
			t.Errorf("ParseSecretRef(%q) = %+v, %v; want an error that names %s", in, got, err, param)
		}
		if upstream.Status(err) != http.StatusBadRequest || upstream.ExitCode(err) != upstream.ExitUsage {
			t.Errorf("ParseSecretRef(%q): status %d, exit code %d", in, upstream.Status(err), upstream.ExitCode(err))
		}
	}
}

func TestWithDefaults(t *testing.T) {
	for _, c := range []struct{ in, want upstream.SecretRef }{
		{upstream.SecretRef{SecretName: "a"}, upstream.SecretRef{SecretName: "a", VersionStage: "ACSCurrent"}},
		{upstream.SecretRef{SecretName: "a", VersionID: "v1"}, upstream.SecretRef{SecretName: "a", VersionID: "v1"}},
		{upstream.SecretRef{SecretName: "a", VersionStage: "x"}, upstream.SecretRef{SecretName: "a", VersionStage: "x"}},
	} {
		if got := c.in.WithDefaults(); got != c.want {
			t.Errorf("%+v.WithDefaults() = %+v, want %+v", c.in, got, c.want)
		}
	}
}

func FuzzParseSecretRef(f *testing.F) {
	for _, seed := range []string{"app/db", "app/db:ACSPrevious", "acs:kms:r:1:secret/n", "acs:kms:::secret/n:S", "a:b:c", "", "acs:kms:", "../../etc"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := upstream.ParseSecretRef(s)
		if err != nil {
			if ref != (upstream.SecretRef{}) || !errors.As(err, new(*upstream.Error)) {
				t.Fatalf("ParseSecretRef(%q) = %+v, %v", s, ref, err)
			}
			return
		}
		if err := ref.Validate(); err != nil {
			t.Fatalf("ParseSecretRef(%q) let %+v through: %v", s, ref, err)
		}
		if again, err := upstream.ParseSecretRef(ref.String()); err != nil || again != ref {
			t.Fatalf("%q parses to %+v, whose text parses to %+v, %v", s, ref, again, err)
		}
	})
}

func TestErrorTableIsReadInBothDirections(t *testing.T) {
	sentinels := []error{
		upstream.ErrInvalidParameter, upstream.ErrMissingParameter, upstream.ErrUnsupported, upstream.ErrLimitExceeded,
		upstream.ErrNotFound, upstream.ErrKeyNotFound, upstream.ErrExists, upstream.ErrPendingDeletion, upstream.ErrNotPendingDeletion,
		upstream.ErrAccessDenied, upstream.ErrUnauthenticated, upstream.ErrNoCredentials, upstream.ErrClockSkew,
		upstream.ErrThrottled, upstream.ErrInternal, upstream.ErrUnavailable, upstream.ErrRefused,
	}
	seen := map[string]bool{}
	for _, s := range sentinels {
		err := fmt.Errorf("context: %w", &upstream.Error{Err: s})
		code, status := upstream.Code(err), upstream.Status(err)
		if seen[code] {
			t.Errorf("%s stands for two sentinels", code)
		}
		seen[code] = true
		if back := upstream.FromCode(code, status); back != s {
			t.Errorf("%v becomes %s and comes back as %v", s, code, back)
		}
		if upstream.ExitCode(err) == upstream.ExitOK {
			t.Errorf("%v exits with 0", s)
		}
		if upstream.Retryable(err) && !upstream.Outage(err) {
			t.Errorf("%v may be retried but hides the last good value", s)
		}
	}
}

func TestClassification(t *testing.T) {
	for _, c := range []struct {
		code          string
		status        int
		want          error
		retry, outage bool
	}{
		{"Forbidden.ResourceNotFound", 404, upstream.ErrNotFound, false, false},
		{"Forbidden.NoPermission", 403, upstream.ErrAccessDenied, false, false},
		{"InvalidAccessKeyId.NotFound", 404, upstream.ErrUnauthenticated, false, true},
		{"InvalidSecurityToken.Expired", 400, upstream.ErrUnauthenticated, false, true},
		{"Throttling.User", 400, upstream.ErrThrottled, true, true},
		{"InvalidTimeStamp.Expired", 400, upstream.ErrClockSkew, false, true},
		{"InvalidApi.NotFound", 404, upstream.ErrUnsupported, false, true},
		{"Forbidden.KeyNotFound", 404, upstream.ErrKeyNotFound, false, true},
		{"", 429, upstream.ErrThrottled, true, true},
		{"", 502, upstream.ErrUnavailable, true, true},
		{"", 401, upstream.ErrUnauthenticated, false, true},
		{"", 418, upstream.ErrRefused, false, true},
	} {
		got := upstream.FromCode(c.code, c.status)
		if got != c.want || upstream.Retryable(got) != c.retry || upstream.Outage(got) != c.outage {
			t.Errorf("%s %d: %v, retryable %t, outage %t", c.code, c.status, got, upstream.Retryable(got), upstream.Outage(got))
		}
	}
	for _, err := range []error{context.Canceled, context.DeadlineExceeded} {
		wrapped := fmt.Errorf("get: %w", err)
		if upstream.Retryable(wrapped) || !upstream.Outage(wrapped) {
			t.Errorf("%v: retryable %t, outage %t", err, upstream.Retryable(wrapped), upstream.Outage(wrapped))
		}
	}
	if upstream.Outage(nil) || upstream.ExitCode(nil) != 0 {
		t.Error("nil is an error")
	}
	for _, c := range []struct {
		errs []error
		want int
	}{
		{[]error{upstream.ErrNotFound, upstream.ErrUnavailable}, upstream.ExitUnavailable},
		{[]error{upstream.ErrAccessDenied, upstream.ErrNotFound, upstream.ErrThrottled}, upstream.ExitUnavailable},
		{[]error{upstream.ErrNotFound, context.DeadlineExceeded}, upstream.ExitUnavailable},
		{[]error{errors.New("disk on fire"), upstream.ErrNotFound}, upstream.ExitNotFound},
	} {
		if code := upstream.ExitCode(errors.Join(c.errs...)); code != c.want {
			t.Errorf("%v together exit with %d, want %d", c.errs, code, c.want)
		}
	}
	if err := errors.New("disk on fire"); upstream.Code(err) != "InternalFailure" || upstream.ExitCode(err) != upstream.ExitFailed {
		t.Errorf("a foreign error answers %s and exits with %d", upstream.Code(err), upstream.ExitCode(err))
	}
}

// Only these say that there is no value for us; all other codes, those that nobody has heard of
// among them and whatever the status, leave a value that is held where it is.
func TestOnlyAClosedListOfCodesMeansGone(t *testing.T) {
	gone := map[string]bool{"Forbidden.ResourceNotFound": true, "Forbidden.NoPermission": true, "Rejected.ResourceInDeleteWindow": true}
	mistake := map[string]bool{"InvalidParameter": true, "MissingParameter": true}
	for _, code := range []string{
		"Forbidden.ResourceNotFound", "Forbidden.NoPermission", "Rejected.ResourceInDeleteWindow", "InvalidParameter", "MissingParameter",
		"InvalidAccountStatus", "InvalidRegionId.NotFound", "Forbidden.ProhibitedByServiceOverdue", "Forbidden.DKMSInstanceStateInvalid", "Forbidden.KeyPolicyUnSupported",
		"Forbidden.InDebt", "Forbidden.KmsServiceNotEnabled", "Forbidden.KeyNotFound", "Forbidden", "Forbidden.Anything", "NotFound", "Gone",
		"Rejected.Disabled", "Rejected.PendingDeletion", "InvalidParameter.Format", "UnsupportedOperation", "InvalidApi.NotFound", "",
	} {
		for _, status := range []int{400, 401, 403, 404, 405, 409, 410, 418, 429, 451, 500, 502, 503} {
			err := upstream.Wrap(&upstream.Error{Code: code, Err: upstream.FromCode(code, status)}, "GetSecretValue", upstream.SecretRef{SecretName: "a"})
			if upstream.Gone(err) != gone[code] || upstream.Outage(err) != (!gone[code] && !mistake[code]) {
				t.Errorf("%q with %d: %v, gone %t, outage %t", code, status, errors.Unwrap(err), upstream.Gone(err), upstream.Outage(err))
			}
			if want := cmp.Or(code, upstream.Code(err)); upstream.Reason(err) != want {
				t.Errorf("the reason is %s, want %s", upstream.Reason(err), want)
			}
		}
	}
}

// One secret that is refused says nothing about the others.
func TestWhatSpeaksOfTheBackendAsAWhole(t *testing.T) {
	down := []error{upstream.ErrThrottled, upstream.ErrInternal, upstream.ErrUnavailable, upstream.ErrUnauthenticated, upstream.ErrNoCredentials, upstream.ErrClockSkew,
		errors.New("disk on fire"), context.DeadlineExceeded, &upstream.Error{Err: upstream.ErrUnavailable, Code: "HTTP502", Unreached: true}}
	alone := []error{upstream.ErrRefused, upstream.ErrKeyNotFound, upstream.ErrUnsupported, upstream.ErrLimitExceeded,
		&upstream.Error{Err: upstream.ErrUnavailable, Code: upstream.CodeInvalidAnswer}}
	for _, err := range append(down, alone...) {
		if upstream.Down(err) != slices.Contains(down, err) || !upstream.Outage(err) {
			t.Errorf("%v: down %t, outage %t", err, upstream.Down(err), upstream.Outage(err))
		}
	}
	for _, err := range []error{nil, upstream.ErrNotFound, upstream.ErrAccessDenied, upstream.ErrInvalidParameter} {
		if upstream.Down(err) {
			t.Errorf("%v: down", err)
		}
	}
}

func TestWhatAnswersAReference(t *testing.T) {
	for name, change := range map[string]func(v *upstream.SecretValue){
		"another secret":  func(v *upstream.SecretValue) { v.SecretName = "app/other" },
		"another version": func(v *upstream.SecretValue) { v.VersionID = "v2" },
		"no version":      func(v *upstream.SecretValue) { v.VersionID = "" },
		"another label":   func(v *upstream.SecretValue) { v.VersionStages = []upstream.VersionStage{upstream.ACSPrevious} },
		"no data":         func(v *upstream.SecretValue) { v.SecretData = upstream.SecretData{} },
		"":                func(*upstream.SecretValue) {},
	} {
		v := upstream.SecretValue{SecretName: "app/db", VersionID: "v1", VersionStages: []upstream.VersionStage{upstream.ACSCurrent, "blue"},
			SecretData: upstream.NewSecretData([]byte("MARKER"))}
		change(&v)
		for _, ref := range []upstream.SecretRef{{}, {VersionID: "v1"}, {VersionStage: "blue"}, {VersionID: "v1", VersionStage: "blue"}} {
			ref.SecretName = "app/db"
			err := v.Answers(ref)
			believed := name == "" || name == "another version" && ref.VersionID == "" || name == "another label" && ref.VersionStage == "" && ref.VersionID != ""
			if (err == nil) != believed || err != nil && (!upstream.Outage(err) || strings.Contains(err.Error(), "MARKER")) {
				t.Errorf("%s for %s: %v", name, ref, err)
			}
		}
	}
}

func TestErrorText(t *testing.T) {
	ref := upstream.SecretRef{SecretName: "app/db", VersionStage: "ACSPrevious"}
	for _, c := range []struct {
		err  error
		want string
	}{
		{&upstream.Error{Err: upstream.ErrThrottled}, "throttled"},
		{upstream.Wrap(&upstream.Error{Err: upstream.ErrNotFound}, "GetSecretValue", ref), "GetSecretValue app/db:ACSPrevious: not found"},
		{&upstream.Error{Op: "GetSecretValue", Code: "Rejected.Throttling", RequestID: "r-1", Endpoint: "kms.example", Err: upstream.ErrThrottled},
			"GetSecretValue: throttled (Rejected.Throttling, request id r-1, endpoint kms.example)"},
		{upstream.InvalidParameter("VersionId", "too long"), `The specified parameter "VersionId" is not valid: too long.`},
	} {
		if got := c.err.Error(); got != c.want {
			t.Errorf("got  %q\nwant %q", got, c.want)
		}
	}
	if err := upstream.Wrap(context.Canceled, "op", ref); err != context.Canceled {
		t.Errorf("a context error becomes %v", err)
	}
	if err := upstream.Wrap(nil, "op", ref); err != nil {
		t.Errorf("nil becomes %v", err)
	}
}

func TestComputedReferencesAreConcealed(t *testing.T) {
	const hidden = "MARKER"
	ref := upstream.SecretRef{SecretName: hidden, VersionID: hidden, VersionStage: hidden, Computed: true}
	told := &upstream.Error{Op: "GetSecretValue", Ref: ref, Message: "no " + hidden, Parameter: hidden, Reason: hidden, Code: "Throttling",
		RequestID: "r-1", Endpoint: "kms.example", RetryAfter: time.Second, Unreached: true, Err: upstream.ErrThrottled}
	for _, err := range []error{told, fmt.Errorf("%s: %w", hidden, told), errors.New(hidden), fmt.Errorf("%s: %w", hidden, upstream.ErrNotFound)} {
		concealed := upstream.Conceal(err)
		if text := fmt.Sprintf("%s %v %#v", concealed, ref, concealed); strings.Contains(text, hidden) {
			t.Errorf("%v becomes %s", err, text)
		}
		if upstream.Code(concealed) != upstream.Code(err) || upstream.Outage(concealed) != upstream.Outage(err) || upstream.Unreached(concealed) != upstream.Unreached(err) {
			t.Errorf("%v becomes %v", err, concealed)
		}
	}
	for _, err := range []error{nil, context.Canceled} {
		if got := upstream.Conceal(err); got != err {
			t.Errorf("%v becomes %v", err, got)
		}
	}
}

func TestGetSecretValueJSON(t *testing.T) {
	created := time.Date(2024, 2, 21, 23, 39, 26, 5, time.FixedZone("", 8*3600))
	v := &upstream.SecretValue{
		SecretName: "app/db", VersionID: "v1", VersionStages: []upstream.VersionStage{upstream.ACSCurrent},
		SecretData: upstream.NewSecretData([]byte("{\"p\":\"<&>\u2028é\"}")), SecretDataType: "text", SecretType: "Generic",
		CreateTime: created, RequestID: "r-1",
	}
	want := `{"SecretName":"app/db","VersionId":"v1","SecretData":"{\"p\":\"<&>\u2028é\"}","SecretDataType":"text",` +
		`"SecretType":"Generic","VersionStages":{"VersionStage":["ACSCurrent"]},"CreateTime":"2024-02-21T15:39:26Z","RequestId":"r-1"}` + "\n"
	if got := string(upstream.GetSecretValueJSON(v)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	v.VersionStages = nil
	v.Managed = &upstream.ManagedSecret{AutomaticRotation: "Enabled", RotationInterval: "604800s"}
	got := string(upstream.GetSecretValueJSON(v))
	for _, part := range []string{`"VersionStages":{"VersionStage":[]}`, `"AutomaticRotation":"Enabled"`, `"RotationInterval":"604800s"`} {
		if !strings.Contains(got, part) {
			t.Errorf("%s is missing in %s", part, got)
		}
	}
}
