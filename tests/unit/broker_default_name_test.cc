// The name that a file's path gives a model, as a table of what the hubs' libraries write.
#include "broker/models/default_name.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "shm/text.h"

namespace modelbroker {
namespace {

struct Case {
  std::string path, name;
};

const std::string kHub = "/home/u/.cache/huggingface/hub/models--org--name/snapshots/0123abc/";

TEST(DefaultName, IsTheStemOrWhatItsFoldersSay) {
  const std::vector<Case> cases{
      // A stem that says something is the name, wherever it lies.
      {"/w/llama.safetensors", "llama"},
      {"/w/llama-7b.Q4.safetensors", "llama-7b.Q4"},
      {"/w/v1/llama.fp16.safetensors", "llama.fp16"},
      {"/w/llama", "llama"},
      {"/w/.safetensors", ".safetensors"},
      {kHub + "lora.safetensors", "lora"},
      {"/w/vae.safetensors", "vae"},
      {"/w/modelling.safetensors", "modelling"},
      {"/w/my_model.safetensors", "my_model"},
      {"/w/part-00001-of-00002.safetensors", "part-00001-of-00002"},
      // One that does not is called after its folder.
      {"/w/llama/model.safetensors", "llama"},
      {"/w/llama/pytorch_model.safetensors", "llama"},
      {"/w/llama/model", "llama"},
      {"/w/lora/adapter_model.safetensors", "lora"},
      {"/w/unet-1/diffusion_pytorch_model.safetensors", "unet-1"},
      {"/w/llama/model.fp16.safetensors", "llama"},
      {"/w/llama/model.non_ema.safetensors", "llama"},
      {"/w//llama/./model.safetensors", "llama"},
      {"/model.safetensors", "model"},
      {"/w/x/../model.safetensors", "model"},
      // A part of a pipeline after the pipeline too.
      {"/w/sdxl/vae/diffusion_pytorch_model.safetensors", "sdxl/vae"},
      {"/w/sdxl/text_encoder_2/model.fp16.safetensors", "sdxl/text_encoder_2"},
      {"/w/sd3/transformer/diffusion_pytorch_model.safetensors", "sd3/transformer"},
      {"/vae/diffusion_pytorch_model.safetensors", "vae"},
      {"/w/sdxl/vae_x/diffusion_pytorch_model.safetensors", "vae_x"},
      {"/w/sdxl/_2/model.safetensors", "_2"},
      // In a hub's cache the repository.
      {kHub + "model.safetensors", "org/name"},
      {kHub + "pytorch_model.fp16.safetensors", "org/name"},
      {kHub + "unet/diffusion_pytorch_model.safetensors", "org/name/unet"},
      {kHub + "text_encoder_2/model.safetensors", "org/name/text_encoder_2"},
      {kHub + "1_Dense/model.safetensors", "org/name/1_Dense"},
      {"/c/models--gpt2/snapshots/1/model.safetensors", "gpt2"},
      {"/c/models--org--a-b.c/snapshots/1/model.safetensors", "org/a-b.c"},
      {"/c/models--org--name/model.safetensors", "models--org--name"},
      {"/c/models--org--name/snapshots/model.safetensors", "snapshots"},
      {"/c/models--/snapshots/1/model.safetensors", "1"},
      // One of several files is not the model.
      {"/w/llama/model-00001-of-00003.safetensors", "llama/model-00001-of-00003"},
      {"/w/llama/model.fp16-00001-of-00003.safetensors", "llama/model.fp16-00001-of-00003"},
      {"/w/llama/model-00002-of-00003.fp16.safetensors", "llama/model-00002-of-00003.fp16"},
      {kHub + "model-00001-of-00002.safetensors", "org/name/model-00001-of-00002"},
      {kHub + "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
       "org/name/unet/diffusion_pytorch_model-00001-of-00002"},
      {"/w/llama/model-1-of-.safetensors", "model-1-of-"},
      {"/w/llama/model-of-2.safetensors", "model-of-2"},
      // What a name may not have.
      {"/w/new\nline.safetensors", "new_line"},
      {"/w/a\x7f\xff\xc2\x85z.safetensors", "a___z"},
      {"/w/a\xe2\x80\xae"
       "b\xe2\x80\x8b.safetensors",
       "a_b_"},
      {"/w/bad\nfolder/model.safetensors", "bad_folder"},
      {"/w/...safetensors", "__"},
      {"/w/..safetensors", "_"},
      {"/", "_"},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(default_name(c.path), c.name) << c.path;
    EXPECT_TRUE(valid_model_name(default_name(c.path))) << c.path;
  }
}

TEST(DefaultName, IsCutWhereItIsTooLongAndStaysDistinct) {
  const std::string most(255, 'x'), more(256, 'x');
  EXPECT_EQ(default_name("/w/" + most + ".safetensors"), most);
  const std::string one = default_name("/w/" + more + "a.safetensors");
  const std::string other = default_name("/w/" + more + "b.safetensors");
  EXPECT_EQ(one.size(), 255U);
  EXPECT_NE(one, other);
  EXPECT_EQ(one, default_name("/v/" + more + "a.safetensors"));
  std::string wide;
  for (int i = 0; i < 200; ++i) wide += "\xc3\xbc";
  for (const std::string& text : {wide, "x" + wide}) {
    EXPECT_TRUE(valid_model_name(default_name("/w/" + text + ".safetensors")));
  }
}

TEST(DefaultName, ASuffixAlwaysFits) {
  EXPECT_EQ(with_suffix("m", "@1"), "m@1");
  EXPECT_EQ(with_suffix(std::string(255, 'x'), "@1"), std::string(253, 'x') + "@1");
  std::string wide;
  for (int i = 0; i < 127; ++i) wide += "\xc3\xbc";
  const std::string cut = with_suffix(wide, "@1");
  EXPECT_TRUE(valid_model_name(cut)) << cut.size();
  EXPECT_TRUE(cut.ends_with("@1"));
}

}  // namespace
}  // namespace modelbroker
