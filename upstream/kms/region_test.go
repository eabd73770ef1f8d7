package kms

import "testing"

func TestMisspeltRegion(t *testing.T) {
	for region, want := range map[string]string{
		"cn-hangzou": "cn-hangzhou", "cn_hangzhou": "cn-hangzhou", "cn-bejing": "cn-beijing", "us-esat-1": "us-east-1",
		"cn-hangzhou": "", "ap-southeast-9": "", "us-east-2": "", "": "", "moon-north-1": "",
	} {
		if got, ok := MisspeltRegion(region); got != want && ok || ok != (want != "") {
			t.Errorf("%q: got %q, %v, want %q", region, got, ok, want)
		}
	}
}
