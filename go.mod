module blockgate

go 1.26
