def test_fused_lora_is_compared_with_peft(capsys):
    from fused_lora import main

    main(["--width", "192", "--rounds", "1"])
    said = capsys.readouterr().out
    values, gradients = (float(word) for word in said.splitlines()[1].split() if "e-" in word and word[0].isdigit() for word in [word.rstrip(",")])
    assert 0 <= values < 1e-5
    assert 0 < gradients < 1e-4
    assert said.count("times PEFT's seconds") == 2
